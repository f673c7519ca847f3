"""A batch on its way: who is part of it with what, and which of its streams may go ahead."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from pie_trio.control.choosing import SHORT_TOKENS
from pie_trio.control.commands import Kind
from pie_trio.control.streams import DecodeStream
from pie_trio.control.trace import StepRecord

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pie_trio.control.choosing import Choice
    from pie_trio.control.commands import Command
    from pie_trio.engine_api import Batch, ForwardRequest

__all__ = ["Member", "Step"]

AHEAD_SHARE = 7 / 8
"""Of a step's commands so many must be streams that may go ahead, or none does: the others take
part in every second step only, once the next one is on its way without them."""


@dataclass(slots=True)
class Member:
    """A command as part of a step.

    Attributes:
        num_tokens: How many of its tokens.
        is_run: It was not withdrawn when the step was made.
        request: What runs, with virtual pages; None for what is not a forward.
        start: The first slot that its tokens are written to.
        place: Of its forward in the batch; -1 without one.
    """

    command: Command
    num_tokens: int
    is_run: bool
    request: ForwardRequest | None = None
    start: int = 0
    place: int = -1

    @property
    def has_result(self) -> bool:
        """The engine returns something for it."""
        return self.is_run and self.command.kind != Kind.COPY


@dataclass(slots=True)
class Step:
    """A batch, from when it is chosen.

    Attributes:
        number: Counted from 1.
        choice: What it was made of.
        members: In the order of the choice.
        chosen_at: On trio's clock.
        gathering_since: From when commands were gathered for it.
        num_ready: Commands that were ready.
        num_blocked: Commands that waited for others.
        late: Who was expected and did not come.
        num_free_pages: When it was made.
        batch: As the device gets it.
        has_begun: The device was asked for it.
        has_ended: Its results were noted.
    """

    number: int
    choice: Choice
    members: list[Member]
    chosen_at: float
    gathering_since: float
    num_ready: int
    num_blocked: int
    late: tuple[str, ...]
    num_free_pages: int
    batch: Batch
    has_begun: trio.Event = field(default_factory=trio.Event)
    has_ended: trio.Event = field(default_factory=trio.Event)
    _ahead: list[tuple[DecodeStream, int]] | None = None  # None until it was asked for
    _is_followed: bool = False

    def find_ahead(self) -> bool:
        """Say whether there may be a next step before this one has ended.

        Asked when no other step is on its way. The streams that may go ahead have to be nearly
        all of those that go on at all; and there is nobody who steps, for whom each step counts.
        """
        if self._ahead is None:
            found: list[tuple[DecodeStream, int]] = []
            num_others, is_stepped = 0, False
            for member in self.members:
                command = member.command
                if command.is_over or not member.is_run:
                    continue
                if not isinstance(command, DecodeStream):
                    num_others += 1
                    is_stepped |= member.num_tokens <= SHORT_TOKENS
                elif command.may_go_ahead(member.num_tokens):
                    found.append((command, member.place))
                elif command.num_left > 1:
                    num_others += 1
            is_enough = not is_stepped and (
                len(found) >= AHEAD_SHARE * (len(found) + num_others)
            )
            self._ahead = found if is_enough else []
            self._is_followed = is_enough and bool(found)
        return self._is_followed

    def take_ahead(self) -> Iterator[tuple[DecodeStream, int]]:
        """Yield the streams that may go ahead, once each, with the places of their forwards."""
        found, self._ahead = self._ahead or [], []
        for stream, place in found:
            if not (stream.is_over or stream.is_finished):
                yield stream, place

    def record(self, begins_at: float, ended_at: float, policy: str) -> StepRecord:
        """Return what the trace keeps of it: as if it had been chosen when the device began.

        Args:
            begins_at: When the device began with it.
            ended_at: When its results came.
            policy: Of batches.
        """
        choice = self.choice
        return StepRecord(
            self.number,
            choice.commands[0].kind.name,
            len(choice.commands),
            sum(choice.num_tokens),
            begins_at - (self.chosen_at - self.gathering_since),
            begins_at,
            ended_at,
            self.num_ready,
            self.late,
            choice.num_other_kind,
            choice.num_over_budget,
            choice.num_without_pages,
            self.num_blocked,
            self.num_free_pages,
            policy,
        )
