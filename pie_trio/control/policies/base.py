"""What a batching policy sees, and what it decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["BatchPolicy", "BatchState"]


@dataclass(frozen=True, slots=True)
class BatchState:
    """The device is idle and commands are ready: what is known at that moment.

    Times are on trio's clock, in seconds.

    Attributes:
        now: The time.
        gathering_since: When the device was idle and something was ready for the first time.
        num_ready: Commands that could run.
        oldest_at: When the oldest of them was submitted.
        progress_at: When the device was idle, or later, when one of those that were about to
            submit last did so (or blocked on something else).
        num_expected: Inferlets that were just resumed and have neither submitted nor blocked.
        step_seconds: Running mean of the time of a step.
        turn_seconds: Running mean of the time that an inferlet takes from when it is its turn to
            when it submits or blocks. They take turns.
    """

    now: float
    gathering_since: float
    num_ready: int
    oldest_at: float
    progress_at: float
    num_expected: int
    step_seconds: float
    turn_seconds: float = 0.0


class BatchPolicy(Protocol):
    """Decides when to dispatch. Synchronous, on plain data: no clock, no device.

    Example::

        class Half:
            '''Wait until half of 64 slots are taken, for 5 ms at most.'''

            max_batch = 64

            def wait_seconds(self, state: BatchState) -> float:
                if state.num_ready >= 32:
                    return 0.0
                return state.oldest_at + 0.005 - state.now
    """

    @property
    def max_batch(self) -> int | None:
        """Most commands of a batch; None leaves it to the limits of the model."""
        ...

    def wait_seconds(self, state: BatchState, /) -> float:
        """Return 0 or less to dispatch now, else how long to wait for more at most.

        It is asked again when a command has come, when nobody is expected any more, and when
        the time is over.
        """
        ...
