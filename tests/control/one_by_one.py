"""What commands should return: a reference that runs them one at a time, each page in its place.

Every handle has a page of its own here, and every embed a place of its own: nothing is shared,
moved, cut or batched. Calls are replayed in the order in which they were made, each command
once it is known what became of it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.engine_api import (
    NO_SLOT,
    Batch,
    ForwardRequest,
    OutputSpec,
    PageCopy,
    ProjectRequest,
    SamplerSpec,
)
from pie_trio.inference.fake import FakeEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["OneByOne", "PlainEmbed", "PlainPage"]

NUM_PLACES = 64


@dataclass(eq=False)
class PlainPage:
    """What stands behind one handle.

    Attributes:
        positions: Of each slot; -1 where nobody asked to write.
        is_good: Whether each slot holds what was asked for.
    """

    positions: list[int]
    is_good: list[bool]
    place: int = -1


@dataclass(eq=False)
class PlainEmbed:
    """A place for a hidden state."""

    place: int = -1
    is_good: bool = False


@dataclass
class OneByOne:
    """Replays calls."""

    page_size: int
    _calls: deque[tuple[Callable[[], bool], Callable[[], None]]] = field(
        default_factory=deque["tuple[Callable[[], bool], Callable[[], None]]"]
    )

    def __post_init__(self) -> None:
        self.engine = FakeEngine(
            num_pages=NUM_PLACES, page_size=self.page_size, num_embeds=NUM_PLACES
        )
        self._pages = list(range(NUM_PLACES))
        self._embeds = list(range(NUM_PLACES))

    def later(self, call: Callable[[], None], is_known: Callable[[], bool]) -> None:
        """Make a call after those before it, once it is known what became of it."""
        self._calls.append((is_known, call))

    def at_once(self, call: Callable[[], None]) -> None:
        """Make a call after those before it."""
        self.later(call, lambda: True)

    def replay(self) -> int:
        """Make the calls that can be made; return how many are left."""
        while self._calls and self._calls[0][0]():
            self._calls.popleft()[1]()
        return len(self._calls)

    # ---- pages and embeds -------------------------------------------------------------

    def new_page(self, source: PlainPage | None = None) -> PlainPage:
        """Return a page, with what ``source`` will hold by then."""
        page = PlainPage([-1] * self.page_size, [False] * self.page_size)

        def make() -> None:
            page.place = self._pages.pop()
            if source is not None:
                self.copy(source, page, 0, 0, self.page_size)

        self.at_once(make)
        return page

    def free_page(self, page: PlainPage) -> None:
        """Give a page back."""
        self.at_once(lambda: self._pages.append(page.place))

    def new_embed(self) -> PlainEmbed:
        """Return an empty embed."""
        embed = PlainEmbed()

        def make() -> None:
            embed.place = self._embeds.pop()

        self.at_once(make)
        return embed

    def free_embed(self, embed: PlainEmbed) -> None:
        """Give an embed back."""
        self.at_once(lambda: self._embeds.append(embed.place))

    # ---- commands, at their time ------------------------------------------------------

    def sees_hole(
        self,
        pages: Sequence[PlainPage],
        start: int,
        num_tokens: int,
        inputs: Sequence[PlainEmbed],
    ) -> bool:
        """Say whether a forward would see what was never written."""
        if not all(embed.is_good for embed in inputs):
            return True
        last = start + num_tokens - 1
        slots = [divmod(slot, self.page_size) for slot in range(start)]
        return any(
            0 <= pages[index].positions[slot] <= last and not pages[index].is_good[slot]
            for index, slot in slots
        )

    def run(
        self,
        pages: Sequence[PlainPage],
        tokens: Sequence[int],
        start: int,
        *,
        inputs: Sequence[PlainEmbed | None],
        store: PlainEmbed | None = None,
        is_whole: bool = True,
    ) -> int:
        """Run a forward, or its first part; return what is sampled after the last token."""
        count, size = len(tokens), self.page_size
        end = start + count
        for offset in range(count):
            index, slot = divmod(start + offset, size)
            pages[index].positions[slot] = start + offset
            pages[index].is_good[slot] = True
        written = [pages[slot // size].positions[slot % size] for slot in range(end)]
        positions = np.arange(start, end, dtype=np.int32)
        shown = np.array(written, np.int32)[None, :]
        slots = [NO_SLOT if embed is None else embed.place for embed in inputs]
        row = np.array([count - 1], np.int32)
        place = None if store is None else np.array([store.place], np.int32)
        request = ForwardRequest(
            np.array(tokens, np.int32),
            positions,
            np.array([page.place for page in pages[: -(-end // size)]], np.int32),
            end,
            (shown >= 0) & (shown <= positions[:, None]),
            (OutputSpec(row, SamplerSpec(), store=place),) if is_whole else (),
            np.array(slots, np.int32) if any(inputs) else None,
        )
        (result,) = self.engine.execute(Batch((request,), (), ())).forwards
        if not is_whole or isinstance(result, Exception):
            return -1
        if store is not None:
            store.is_good = True
        return int(result[0].token_ids[0])

    def spoil(self, pages: Sequence[PlainPage], start: int, num_tokens: int) -> None:
        """Note that slots were to be written, and were not."""
        for position in range(start, start + num_tokens):
            index, slot = divmod(position, self.page_size)
            pages[index].positions[slot] = position
            pages[index].is_good[slot] = False

    def project(self, embed: PlainEmbed) -> int:
        """Return what is sampled from a hidden state."""
        row = np.zeros(1, np.int32)
        outputs = (OutputSpec(row, SamplerSpec()),)
        request = ProjectRequest(np.array([embed.place], np.int32), row, outputs)
        (result,) = self.engine.execute(Batch((), (), (request,))).projections
        assert not isinstance(result, Exception), result
        return int(result[0].token_ids[0])

    def copy(
        self, source: PlainPage, target: PlainPage, start: int, into: int, count: int
    ) -> None:
        """Copy slots, with what they lack."""
        span, other = slice(start, start + count), slice(into, into + count)
        target.positions[other] = source.positions[span]
        target.is_good[other] = source.is_good[span]
        copies = (PageCopy(source.place, target.place, start, into, count),)
        self.engine.execute(Batch((), copies, ()))
