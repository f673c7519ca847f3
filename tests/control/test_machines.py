"""The state machines of the control layer, at length."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.control.machines import WITHOUT_SHRINKING
from tests.control.test_exports_machine import ExportMachine
from tests.control.test_handles_machine import HandleMachine
from tests.control.test_pages import PoolMachine
from tests.control.test_queues_machine import QueueMachine

if TYPE_CHECKING:
    from tests.control.machines import CountedMachine

MIN_STEPS = 30_000
AT_LENGTH = settings(
    max_examples=250,
    stateful_step_count=50,
    deadline=None,
    phases=WITHOUT_SHRINKING,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "machine", [PoolMachine, HandleMachine, ExportMachine, QueueMachine]
)
def test_thirty_thousand_steps_break_nothing(
    machine: type[CountedMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    before = num_steps = machine.num_steps
    while num_steps - before < MIN_STEPS:
        run_state_machine_as_test(machine, settings=AT_LENGTH)
        assert machine.num_steps > num_steps, "they are counted"
        num_steps = machine.num_steps
    with capsys.disabled():
        sys.stdout.write(f"\n{machine.__name__}: {num_steps - before} steps\n")
