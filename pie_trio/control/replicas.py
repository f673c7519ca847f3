"""Several engines of one model: to inferlets and clients there is one model with one name."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from pie_trio.control.placing import ORDER, Load, State, choose_replica
from pie_trio.control.shared_exports import SharedExports
from pie_trio.errors import AdapterError, CancelledError, PieError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from pie_trio.control.served_model import ServedModel

__all__ = ["Replicas"]

MAX_SHARE = 0.05
"""Of the loop's time in which launches may count what exports could give back: it walks them."""


@dataclass(frozen=True, slots=True)
class _Count:
    """How many pages exports that nobody uses could give back.

    Attributes:
        num_exports: That were there then, with copies of others'.
        num_pages: Of them.
        ends_at: Until when this is good enough, on trio's clock.
    """

    num_exports: int = 0
    num_pages: int = 0
    ends_at: float = float("inf")


class Replicas:
    """The engines of one model, each with its own pages, batcher and policy.

    Mostly there is one. Where there are several, an inferlet runs on one of them.

    Args:
        members: By number; from now on they are replicas of each other. Only the first may have
            exports already.
    """

    def __init__(self, members: Sequence[ServedModel]) -> None:
        self.members = tuple(members)
        self._counted = [_Count()] * len(self.members)
        first = self.members[0]
        for number, member in enumerate(self.members):
            member.number, member.replicas = number, self
            if member is not first:
                member.exports.count_with(first.exports)
            others = [other for other in self.members if other is not member]
            member.shared_exports = SharedExports(member, others)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self.members)

    @property
    def state(self) -> State:
        """Of the model: it is ready as long as one replica is."""
        states = {member.state for member in self.members}
        return next(state for state in ORDER if state in states)

    def choose(self) -> ServedModel:
        """Return the replica on which the next inferlet runs: see :func:`choose_replica`."""
        if len(self.members) == 1:
            return self.members[0]
        return self.members[choose_replica([self._load(n) for n in range(len(self))])]

    def _load(self, number: int) -> Load:
        member = self.members[number]
        num_exports = len(member.exports) + member.shared_exports.num_copies
        counted = self._counted[number]
        has_changed = abs(num_exports - counted.num_exports) > counted.num_exports / 8
        if has_changed or trio.current_time() > counted.ends_at:
            began = time.perf_counter()
            num_pages = member.shared_exports.reclaim(0) if num_exports else 0
            seconds = (time.perf_counter() - began) / MAX_SHARE
            ends_at = trio.current_time() + seconds
            counted = self._counted[number] = _Count(num_exports, num_pages, ends_at)
        num_free = member.pool.num_free + counted.num_pages
        return Load(member.state, num_free, member.num_inferlets)

    # ---- adapters ---------------------------------------------------------------------

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Load an adapter on all of them, or on none: see :meth:`Engine.load_adapter`.

        Whoever is cancelled meanwhile may leave it loaded.

        Raises:
            AdapterError: It cannot be used with this model, or the name cannot be had.
            EngineError: The engine of one has gone: try again when it has started again.
        """
        loaded = list["ServedModel"]()
        try:
            for member in self.members:
                await member.load_adapter(name, directory)
                loaded.append(member)
        except PieError:
            for member in loaded:
                member.drop_adapter(name)
            raise

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter on all of them. Streams with it end that wait for their readers.

        Raises:
            AdapterError: There is none of that name, or a command that has not ended uses it.
        """
        ended = CancelledError(
            f"the adapter {name} was dropped while the stream waited for its reader: start "
            "another one, with an adapter that is there"
        )
        for member in self.members:
            if name in member.info.adapters:
                member.batcher.end_paused(name, ended)
        if any(member.batcher.uses_adapter(name) for member in self.members):
            raise AdapterError(
                f"the adapter {name} is in use: drop it when the forwards and streams with it "
                "have ended"
            )
        first, *others = self.members
        for member in others:
            if name in member.info.adapters:
                member.drop_adapter(name)
        first.drop_adapter(name)
