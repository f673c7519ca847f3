"""Compares what became of commands with what one at a time would have done."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.errors import CancelledError, EngineError, OutOfPagesError
from tests.control.guests import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection

    from tests.control.one_by_one import OneByOne, PlainEmbed, PlainPage
    from tests.control.queue_guests import Submitted

BROKEN = 7
"""A forward with this token fails alone."""


class Replays:
    """Replays commands that have ended.

    A command may fail only where it was withdrawn, its step failed, or it would see a slot that
    such a command was to write; where pages are short, also for that.

    Args:
        plain: The reference.
        failed_steps: Numbers of the steps that have failed, as they do.
        is_short: There may be too few pages.
        is_chunked: A forward may take several steps.
    """

    def __init__(
        self,
        plain: OneByOne,
        failed_steps: Collection[int],
        *,
        is_short: bool,
        is_chunked: bool,
    ) -> None:
        self._plain, self._failed_steps = plain, failed_steps
        self._is_short, self._is_chunked = is_short, is_chunked

    def forward(
        self,
        submitted: Submitted,
        pages: list[PlainPage],
        own: list[PlainPage],
        tokens: list[int],
        start: int,
        inputs: list[PlainEmbed | None],
        store: PlainEmbed | None,
    ) -> None:
        command, outcome = submitted.command, submitted.outcomes[0]
        read = [embed for embed in inputs if embed is not None]
        sees_hole = self._plain.sees_hole(pages, start, len(tokens), read)
        if not isinstance(outcome, Exception):
            assert not sees_hole, "nobody sees what was never written"
            assert not submitted.is_unwanted or self._is_chunked, "it was withdrawn"
            assert BROKEN not in tokens
            token = self._plain.run(pages, tokens, start, inputs=inputs, store=store)
            assert outcome is not None
            assert outcome[0].token_ids.tolist() == [token]
            return
        self._check_failure(submitted, outcome, may_fail=sees_hole or BROKEN in tokens)
        if not command.is_copied:
            for page in own:
                page.is_good = [False] * PAGE_SIZE
        if done := command.num_run:
            self._plain.run(
                pages, tokens[:done], start, inputs=inputs[:done], is_whole=False
            )
        self._plain.spoil(pages, start + done, len(tokens) - done)
        if store is not None:
            store.is_good = False

    def copy(
        self,
        submitted: Submitted,
        source: PlainPage,
        target: PlainPage,
        start: int,
        into: int,
        count: int,
    ) -> None:
        command, outcome = submitted.command, submitted.outcomes[0]
        is_of_shared = len(command.copies) == 2
        kept = set(range(PAGE_SIZE)) - set(range(into, into + count))
        copied = [(source, slot) for slot in range(start, start + count)]
        if is_of_shared:
            copied += [(target, slot) for slot in kept]
        lacks = [
            page.positions[slot] >= 0 and not page.is_good[slot]
            for page, slot in copied
        ]
        if outcome is None:
            assert not any(lacks), "what was never written is not copied"
        else:
            assert isinstance(outcome, Exception)
            self._check_failure(submitted, outcome, may_fail=any(lacks))
        if command.is_copied:
            self._plain.copy(source, target, start, into, count)
            return
        moved = source.positions[start : start + count]
        target.positions[into : into + count] = moved
        is_lost = is_of_shared or command.batch in self._failed_steps
        lost = range(PAGE_SIZE) if is_lost else range(into, into + count)
        for slot in lost:
            target.is_good[slot] = False

    def project(self, submitted: Submitted, embed: PlainEmbed) -> None:
        outcome = submitted.outcomes[0]
        if isinstance(outcome, Exception):
            self._check_failure(submitted, outcome, may_fail=not embed.is_good)
            return
        assert embed.is_good, "nobody sees what was never stored"
        assert not submitted.is_unwanted, "it was withdrawn"
        assert outcome is not None
        assert outcome[0].token_ids.tolist() == [self._plain.project(embed)]

    def _check_failure(
        self, submitted: Submitted, error: Exception, *, may_fail: bool
    ) -> None:
        """Assert that there was a reason."""
        if self._is_short and isinstance(error, OutOfPagesError):
            return
        has_failed = submitted.command.batch in self._failed_steps
        assert isinstance(error, CancelledError | EngineError), error
        assert may_fail or has_failed or submitted.is_unwanted, error
