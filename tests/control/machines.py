"""What the state machines share: they count their steps."""

from __future__ import annotations

from typing import ClassVar

from hypothesis import Phase
from hypothesis.stateful import RuleBasedStateMachine, invariant

WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""Shrinking a long run of the batcher may take longer than a test may, which then ends without
a word. A failure is shorter with fewer steps: ``settings(stateful_step_count=8)``."""


class CountedMachine(RuleBasedStateMachine):
    """Counts the steps after which everything that must hold was checked.

    Attributes:
        num_steps: Of all machines of the class so far.
    """

    num_steps: ClassVar[int] = 0

    @invariant()
    def count_step(self) -> None:
        type(self).num_steps += 1
