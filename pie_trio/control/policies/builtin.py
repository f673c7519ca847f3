"""The six policies that come with the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pie_trio.control.policies.base import BatchState

__all__ = ["Adaptive", "Eager", "KOnly", "KOrT", "Rendezvous", "TOnly"]


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Dispatch as soon as the device is idle, but wait for those who are about to submit.

    Dispatching at once splits N inferlets that step token by token into two cohorts that
    alternate, and each half batch reads all the weights again.

    Whoever is late is not waited for: it computes for long. How long the others take is not
    known, since guests share a core; so the wait goes on as long as one after the other comes.

    Where all their turns together take longer than a step, nobody is waited for: of two cohorts, one
    takes its turns while the device works for the other, which then costs less than a half batch.

    Attributes:
        fraction: Longest wait for the next one, as a part of a step.
        floor_seconds: Longest wait for the next one where steps are very short.
        limit: Longest wait for all of them, in steps (or in floors, where that is longer).
    """

    fraction: float = 0.5
    floor_seconds: float = 0.002
    limit: float = 2.0
    max_batch: int | None = None

    def wait_seconds(self, state: BatchState) -> float:
        """Wait while somebody is expected."""
        if not state.num_expected:
            return 0.0
        turns = (state.num_expected + state.num_ready) * state.turn_seconds
        if turns > state.step_seconds > self.floor_seconds:
            return 0.0
        patience = max(self.floor_seconds, self.fraction * state.step_seconds)
        longest = self.limit * max(self.floor_seconds, state.step_seconds)
        end = min(state.progress_at + patience, state.gathering_since + longest)
        return end - state.now


@dataclass(frozen=True, slots=True)
class Adaptive:
    """The paper's: dispatch whatever is ready the moment that the device is idle."""

    max_batch: int | None = None

    def wait_seconds(self, _state: BatchState) -> float:
        """Do not wait."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Eager:
    """Dispatch each command alone, as it comes."""

    max_batch: int | None = 1

    def wait_seconds(self, _state: BatchState) -> float:
        """Do not wait."""
        return 0.0


@dataclass(frozen=True, slots=True)
class KOnly:
    """Dispatch batches of k commands.

    Attributes:
        max_batch: k.
        patience_seconds: Where fewer than k are left, dispatch them after this time.
    """

    max_batch: int | None = 8
    patience_seconds: float = 0.1

    def wait_seconds(self, state: BatchState) -> float:
        """Wait for k."""
        if self.max_batch is None or state.num_ready >= self.max_batch:
            return 0.0
        return state.oldest_at + self.patience_seconds - state.now


@dataclass(frozen=True, slots=True)
class TOnly:
    """Dispatch what is ready once the oldest has waited for t.

    Attributes:
        seconds: t.
    """

    seconds: float = 0.016
    max_batch: int | None = None

    def wait_seconds(self, state: BatchState) -> float:
        """Wait until t is over."""
        return state.oldest_at + self.seconds - state.now


@dataclass(frozen=True, slots=True)
class KOrT:
    """Dispatch once k commands are ready or the oldest has waited for t.

    Attributes:
        k: Enough commands.
        seconds: t.
    """

    k: int = 8
    seconds: float = 0.016
    max_batch: int | None = None

    def wait_seconds(self, state: BatchState) -> float:
        """Wait for either."""
        if state.num_ready >= self.k:
            return 0.0
        return state.oldest_at + self.seconds - state.now
