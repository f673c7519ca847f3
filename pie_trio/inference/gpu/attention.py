"""Runs the wrappers that were planned for a batch, layer by layer: see :mod:`.planning`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pie_trio.inference.gpu.cache import DeviceKvCache
    from pie_trio.inference.gpu.library import (
        DecodeWrapper,
        FlashInfer,
        PrefillWrapper,
    )
    from pie_trio.inference.models.config import AttentionConfig

__all__ = ["Attender", "CascadePart", "FlashInferAttention", "Part", "Slots"]


@dataclass(frozen=True, slots=True)
class Slots:
    """Where new keys go, on the device; see :func:`~..paging.groups.append_places`.

    Attributes:
        owners: ``[num_tokens]`` int32.
        places: ``[num_tokens]`` int32.
        page_ids: int32.
        page_indptr: ``[B + 1]`` int32.
        last_page_lens: ``[B]`` int32.
    """

    owners: Tensor
    places: Tensor
    page_ids: Tensor
    page_indptr: Tensor
    last_page_lens: Tensor


class Attender(Protocol):
    """Attends for some requests of a batch."""

    @property
    def rows(self) -> Tensor | None:
        """``[n]`` int64 on the device, the new tokens that are theirs; None for all."""
        ...

    def attend(
        self, query: Tensor, layer: tuple[Tensor, Tensor], window: int
    ) -> Tensor:
        """Return ``[n, num_heads, head_dim]`` for the query of the whole batch.

        Args:
            query: ``[num_tokens, num_heads, head_dim]``.
            layer: Keys and values, with the new ones.
            window: Index of that of the layer.
        """
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """A group of requests with a planned wrapper for each window of the model: an :class:`Attender`.

    Attributes:
        wrappers: As many as there are windows.
        rows: ``[n]`` int64 on the device; None for all.
        blind_rows: For each window ``[m]`` int64 on the device, of the part's rows those that
            see nothing; None for none.
    """

    wrappers: Sequence[DecodeWrapper | PrefillWrapper]
    rows: Tensor | None = None
    blind_rows: Sequence[Tensor | None] | None = None

    def attend(
        self, query: Tensor, layer: tuple[Tensor, Tensor], window: int
    ) -> Tensor:
        """Return ``[n, num_heads, head_dim]`` for the query of the whole batch."""
        own = query if self.rows is None else query.index_select(0, self.rows)
        # Given, because FlashInfer clears what it allocates itself.
        result = own.new_empty(own.shape)
        self.wrappers[window].run(own, layer, out=result)
        if self.blind_rows is not None:
            blind = self.blind_rows[window]
            if blind is not None:
                result.index_fill_(0, blind, 0.0)
        return result


@dataclass(frozen=True, slots=True)
class CascadePart:
    """Requests with common beginnings; an :class:`Attender`.

    Attributes:
        library: Merges.
        shared: Planned for the beginnings.
        own: Planned for the rest of each.
        rows: ``[n]`` int64 on the device.
    """

    library: FlashInfer
    shared: PrefillWrapper
    own: PrefillWrapper
    rows: Tensor

    def attend(
        self, query: Tensor, layer: tuple[Tensor, Tensor], window: int
    ) -> Tensor:
        """See :class:`Attender`; there are no windows."""
        del window
        query = query.index_select(0, self.rows)
        result, other = query.new_empty(query.shape), query.new_empty(query.shape)
        _, sums = self.own.run_return_lse(query, layer, out=result)
        _, more = self.shared.run_return_lse(query, layer, out=other)
        self.library.merge_state_in_place(result, sums, other, more)
        return result


@dataclass(frozen=True, slots=True)
class FlashInferAttention:
    """The attention of one batch; an :class:`~..models.decoder.Attention`.

    Attributes:
        parts: Hold every new token once; one without rows is the only one.
    """

    library: FlashInfer
    kv_cache: DeviceKvCache
    config: AttentionConfig
    slots: Slots
    parts: Sequence[Attender]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new keys and values, then attend: see :class:`Attention`."""
        pages, slots = self.kv_cache.layers[layer], self.slots
        self.library.append_paged_kv_cache(
            key,
            value,
            slots.owners,
            slots.places,
            pages,
            slots.page_ids,
            slots.page_indptr,
            slots.last_page_lens,
            "NHD",
        )
        window = self.config.window_of_layer[layer]
        if self.parts[0].rows is None:
            return self.parts[0].attend(query, pages, window).flatten(1)
        result = query.new_empty(query.shape)
        for part in self.parts:
            assert part.rows is not None, "several parts have some rows each"
            result.index_copy_(0, part.rows, part.attend(query, pages, window))
        return result.flatten(1)
