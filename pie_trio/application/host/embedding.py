"""Embeds and pages of the paper's ``forward``: what goes in, where it is written."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.control.pages import UNWRITTEN
from pie_trio.engine_api import NO_SLOT, OutputSpec
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from numpy.typing import NDArray

    from pie_trio.control.embed_table import Embed
    from pie_trio.control.embeds import EmbedPool
    from pie_trio.control.handles import HandleTable
    from pie_trio.control.page_table import PageTable
    from pie_trio.control.pages import PagePool

__all__ = [
    "Inputs",
    "Outputs",
    "Slots",
    "append_slots",
    "resolve_inputs",
    "take_outputs",
]

TEMPORARY = 1 << 32
"""Handles from here on are not the guest's: the wire carries 32 bits."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What embeds bring into a forward.

    Attributes:
        token_ids: ``[n]`` int32; 0 where a hidden state enters.
        positions: ``[n]`` int32.
        slots: ``[n]`` int32, places of hidden states, ``NO_SLOT`` elsewhere; None for none.
        stored: The places alone.
    """

    token_ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    slots: NDArray[np.int32] | None
    stored: frozenset[int]


def resolve_inputs(table: HandleTable[Embed], handles: Sequence[int]) -> Inputs:
    """Return what stands behind embeds.

    Raises:
        UnknownHandleError: One is not the guest's.
        BadArgumentError: Nothing was put into one.
    """
    embeds = [table.get(handle) for handle in handles]
    for handle, embed in zip(handles, embeds, strict=True):
        if embed.is_empty:
            raise BadArgumentError(
                f"embed {handle} is empty: put a token there with embed-txt, or let a forward "
                "write it"
            )
    stored = frozenset(embed.slot for embed in embeds if embed.slot >= 0)
    slots = None
    if stored:
        slots = np.array(
            [embed.slot if embed.slot >= 0 else NO_SLOT for embed in embeds], np.int32
        )
    return Inputs(
        np.array([max(embed.token, 0) for embed in embeds], np.int32),
        np.array([embed.position for embed in embeds], np.int32),
        slots,
        stored,
    )


@dataclass(slots=True)
class Outputs:
    """Embeds that a forward writes; they change once it is certain that it will be enqueued.

    Attributes:
        read: Places that the forward reads, which it cannot write.
        slots: The place of each on the device; those of embeds that had none, or one that is
            read, are new.
    """

    embeds: list[Embed]
    positions: list[int]
    pool: EmbedPool
    read: frozenset[int]
    slots: list[int] = field(default_factory=list[int])
    _left: list[int] = field(default_factory=list[int])

    def specs(self, num_tokens: int) -> tuple[OutputSpec, ...]:
        """Return the output of the forward: its last tokens go to these embeds."""
        if not self.embeds:
            return ()
        if not self.slots:
            self.slots = [
                self.pool.allocate() if _is_new(embed, self.read) else embed.slot
                for embed in self.embeds
            ]
        rows = np.arange(num_tokens - len(self.embeds), num_tokens, dtype=np.int32)
        return (OutputSpec(rows, store=np.array(self.slots, np.int32)),)

    def commit(self) -> None:
        """Let the embeds stand for the hidden states."""
        for embed, slot, position in zip(
            self.embeds, self.slots, self.positions, strict=True
        ):
            if embed.slot not in (-1, slot):
                self._left.append(embed.slot)
            embed.token, embed.slot, embed.position = -1, slot, position

    def leave(self) -> None:
        """Give back places that the forward reads and no embed has any more, once it has them."""
        for slot in self._left:
            self.pool.release(slot)

    def roll_back(self) -> None:
        """Give back the places that are new."""
        for embed, slot in zip(self.embeds, self.slots, strict=False):
            if embed.slot != slot:
                self.pool.release(slot)


def take_outputs(
    table: HandleTable[Embed], handles: Sequence[int], inputs: Inputs, pool: EmbedPool
) -> Outputs:
    """Check the embeds that a forward is to write.

    Raises:
        UnknownHandleError: One is not the guest's.
        BadArgumentError: There are more than inputs, or one is named twice.
        OutOfEmbedsError: There are not enough places.
    """
    embeds = [table.get(handle) for handle in handles]
    if len(embeds) > len(inputs.token_ids):
        raise BadArgumentError(
            f"{len(embeds)} output embeds, but only {len(inputs.token_ids)} inputs: each output "
            "belongs to one of the last inputs"
        )
    if len(set(handles)) != len(handles):
        raise BadArgumentError("the same embed is named twice: name each once")
    pool.check_free(sum(_is_new(embed, inputs.stored) for embed in embeds))
    positions = inputs.positions[len(inputs.positions) - len(embeds) :].tolist()
    return Outputs(embeds, positions, pool, inputs.stored)


def _is_new(embed: Embed, read: frozenset[int]) -> bool:
    """Say whether an embed that is written gets another place."""
    return embed.slot < 0 or embed.slot in read


@dataclass(frozen=True, slots=True)
class Slots:
    """Where a forward writes.

    Attributes:
        pages: Handles of the whole context.
        start: Its first slot to be written.
    """

    pages: list[int]
    start: int


@contextmanager
def append_slots(
    pool: PagePool,
    table: PageTable,
    input_pages: Sequence[int],
    output_pages: Sequence[int],
    num_tokens: int,
) -> Generator[Slots]:
    """Find the slots behind all that was written to the output pages.

    Without output pages, new ones take them that are given back when the block is left: the
    command that uses them then keeps them until it is done.

    Raises:
        UnknownHandleError: A page is not the guest's.
    """
    outputs = list(output_pages)
    temporary: list[int] = []
    if not outputs:
        count = -(-num_tokens // pool.page_size)
        temporary = [TEMPORARY + index for index in range(count)]
        for handle in temporary:
            table.add(handle, pool.allocate())
        outputs = temporary
    try:
        kept = set(outputs)
        before = [page for page in input_pages if page not in kept]
        written = pool.positions[[table.get(page) for page in outputs]].reshape(-1)
        used = np.flatnonzero(written != UNWRITTEN)
        start = len(before) * pool.page_size + (int(used[-1]) + 1 if len(used) else 0)
        yield Slots([*before, *outputs], start)
    finally:
        for handle in temporary:
            pool.release(table.remove(handle))
