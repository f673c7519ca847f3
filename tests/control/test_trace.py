"""What the batcher and the pages leave in the trace."""

from __future__ import annotations

import gc
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import trio

from pie_trio.control import trace as trace_module
from pie_trio.control.pages import PagePool
from pie_trio.control.tenants import Tenant
from pie_trio.control.trace import Trace
from pie_trio.engine_api import PageCopy
from pie_trio.errors import EngineError
from tests.control.engines import Outcomes
from tests.control.test_dispatch import open_rig
from tests.control.test_explaining import step

if TYPE_CHECKING:
    import pytest


async def test_a_command_is_recorded_with_its_way_through_the_batcher() -> None:
    async with open_rig(gated=True) as rig:
        rig.submit(1)
        await rig.gate.wait_started(1)
        for token in (2, 3):
            rig.submit(token, num_tokens=token)
        rig.gate.open()
        await rig.outcomes.wait(1, 2, 3)
        trace = rig.batcher.trace
    commands = list(trace.commands)
    assert [(c.step, c.batch_size) for c in commands] == [(1, 1), (2, 2), (2, 2)]
    assert [c.num_tokens for c in commands] == [1, 2, 3]
    for command in commands:
        assert (command.tenant, command.kind) == ("tenant", "FORWARD")
        assert command.outcome == "ok"
        assert (
            0
            < command.submitted_at
            <= command.started_at
            == command.batched_at
            <= command.finished_at
        )
    assert [(s.number, s.size, s.num_tokens) for s in trace.steps] == [
        (1, 1, 1),
        (2, 2, 5),
    ]
    assert [s.num_free_pages for s in trace.steps] == [15, 13]


async def test_a_command_that_never_ran_has_no_step() -> None:
    async with open_rig(gated=True) as rig:
        rig.submit(1)
        await rig.gate.wait_started(1)
        rig.submit(2).withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1, 2)
        withdrawn = list(rig.batcher.trace.commands)[-1]
    assert (withdrawn.step, withdrawn.batch_size, withdrawn.started_at) == (0, 0, 0)
    assert withdrawn.outcome == "CancelledError"


async def test_a_failed_command_is_recorded_with_its_error() -> None:
    async with open_rig(failures={0: EngineError("scripted")}) as rig:
        rig.submit(1)
        await rig.outcomes.wait(1)
        (command,) = rig.batcher.trace.commands
    assert (command.outcome, command.step, command.batch_size) == ("EngineError", 1, 1)


async def test_a_long_prefill_is_recorded_from_its_first_chunk_to_its_last() -> None:
    async with open_rig(max_batch_tokens=2) as rig:
        rig.submit(1, num_tokens=4)
        await rig.outcomes.wait(1)
        (command,) = rig.batcher.trace.commands
        assert [s.num_tokens for s in rig.batcher.trace.steps] == [2, 2]
    assert command.step == 2
    assert command.submitted_at <= command.started_at < command.batched_at


async def test_a_step_names_who_was_late() -> None:
    async with open_rig(gated=True) as rig:
        rig.arrivals.expect("slow")
        rig.submit(1)
        rig.gate.open()
        await rig.outcomes.wait(1)
        (found,) = rig.batcher.trace.steps
    assert found.late == ("slow",)
    assert found.policy == "rendezvous:0.5,0.0"


async def test_a_step_counts_what_was_blocked_and_what_was_of_another_kind() -> None:
    async with open_rig(gated=True) as rig:
        first = rig.pool.allocate()
        rig.submit(0, page=first)
        await rig.gate.wait_started(1)
        rig.submit(1, page=rig.pool.allocate())
        rig.submit(2, page=first)  # after 0, then ready
        rig.submit(3, page=first)  # after 2
        target = rig.pool.allocate()
        copy = PageCopy(first, target, 0, 0, 1)
        rig.batcher.submit(rig.outcomes.copy(4, [copy]))  # after 3
        rig.gate.open()
        await rig.outcomes.wait(0, 1, 2, 3, 4)
        steps = rig.batcher.trace.steps
    assert [(s.kind, s.size, s.num_blocked) for s in steps] == [
        ("FORWARD", 1, 0),
        ("FORWARD", 2, 2),
        ("FORWARD", 1, 1),
        ("COPY", 1, 0),
    ]


async def test_who_has_a_physical_page_can_be_told_from_the_trace() -> None:
    async with open_rig() as rig:
        owner = Tenant("owner", 1)
        page = rig.pool.allocate()
        rig.submit(1, page=page, tenant=owner)
        await rig.outcomes.wait(1)
        place = int(rig.pool.physical[page])
        rig.pool.release(page)
        events = list(rig.batcher.trace.pages)
    assert [e[1:] for e in events] == [
        ("bind", page, place, "owner"),
        ("unbind", page, place, ""),
    ]
    assert events[0].at <= events[1].at


def test_pages_that_move_to_host_memory_and_back_are_recorded() -> None:
    pool = PagePool(num_pages=4, page_size=4)
    ticks = count()
    trace = Trace(lambda: float(next(ticks)))
    pool.on_event = trace.note_page
    kept, dropped = pool.allocate(), pool.allocate()
    pages = np.array([kept, dropped], np.int32)
    pool.bind(pages, "owner")
    pool.swap_out([kept, dropped], np.zeros((2, 8), np.uint8))
    pool.release(dropped)
    pool.swap_in([kept])
    pool.release(kept)
    events = [(e.event, e.page, e.place >= 0) for e in trace.pages]
    assert events == [
        ("bind", kept, True),
        ("bind", dropped, True),
        ("swap out", kept, True),
        ("swap out", dropped, True),
        ("unbind", dropped, False),
        ("swap in", kept, True),
        ("unbind", kept, True),
    ]
    assert [e.at for e in trace.pages] == list(range(7))


async def test_a_trace_is_bounded_and_keeps_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("MAX_COMMANDS", "MAX_STEPS", "MAX_PAGE_EVENTS"):
        monkeypatch.setattr(trace_module, name, 3)
    trace = Trace(trio.current_time)
    for number in range(1, 6):
        trace.note_step(step(number=number, size=number))
        command = Outcomes().command(number, page=0)
        command.batch = number
        trace.note_command(command, None, 1.0)
        trace.note_page("bind", number, 0, "")
    assert [s.number for s in trace.steps] == [3, 4, 5]
    assert [(c.step, c.batch_size) for c in trace.commands] == [(3, 3), (4, 4), (5, 5)]
    assert [p.page for p in trace.pages] == [3, 4, 5]


async def test_the_garbage_collector_need_not_look_at_what_is_kept() -> None:
    trace = Trace(trio.current_time)
    trace.note_command(Outcomes().command(1, page=0), ValueError(), 1.0)
    trace.note_page("bind", 1, 2, "tenant")
    gc.collect()
    kept = [*trace._commands, *trace._pages]
    assert not any(gc.is_tracked(row) for row in kept)
