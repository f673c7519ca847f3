"""The KV cache as the built kernels read it: what a head needs of a page lies together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pie_trio.inference.kv_cache import allocate_kv_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pie_trio.engine_api import PageCopy
    from pie_trio.inference.models.config import DecoderConfig

__all__ = ["TiledKvCache", "allocate_tiled_cache"]


class TiledKvCache:
    """Keys (rotated) and values of every page and layer; a :class:`~.protocol.PagedCache`.

    Attributes:
        pages: ``[num_layers, num_pages, num_kv_heads, 2, page_size * head_dim]``; at index 0
            of the fourth dimension the keys as ``[head_dim, page_size]``, so that one
            dimension of several tokens is a vector, at 1 the values as
            ``[page_size, head_dim]``.
        page_size: Tokens in a page.
    """

    def __init__(self, pages: Tensor, page_size: int) -> None:
        self.pages = pages
        self.page_size = page_size
        # [L, P, KV, ps, D], the same memory
        head_dim, outer = pages.shape[-1] // page_size, pages.shape[:3]
        self._keys = pages[:, :, :, 0].view(*outer, head_dim, page_size).mT
        self._values = pages[:, :, :, 1].view(*outer, page_size, head_dim)
        self.layer_addresses = [layer.data_ptr() for layer in pages]

    @property
    def num_pages(self) -> int:
        """Pages in the cache."""
        return self.pages.shape[1]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return keys and values, each ``[num_pages, num_kv_heads, page_size, head_dim]``."""
        return self._keys[index], self._values[index]

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """See :meth:`~.protocol.PagedCache.copy`, here and below."""
        for copy in copies:
            start, target = copy.source_offset, copy.target_offset
            for tensor in (self._keys, self._values):
                tokens = tensor[:, copy.source, :, start : start + copy.count]
                if copy.source == copy.target:
                    tokens = tokens.clone()  # the two ranges may overlap
                tensor[:, copy.target, :, target : target + copy.count] = tokens

    def clear(self, slots: Tensor) -> None:  # noqa: D102
        pages, offsets = slots // self.page_size, slots % self.page_size
        self._keys[:, pages, :, offsets] = 0.0
        self._values[:, pages, :, offsets] = 0.0

    def read(self, page_ids: Tensor) -> Tensor:  # noqa: D102
        pages = self.pages.index_select(1, page_ids).movedim(1, 0).contiguous()
        return pages.flatten(1).view(torch.uint8)

    def write(self, page_ids: Tensor, data: Tensor) -> None:  # noqa: D102
        if not len(page_ids):  # nothing cannot be seen as numbers
            return
        shape = (len(page_ids), *self.pages[:, 0].shape)
        pages = data.view(self.pages.dtype).view(shape)
        self.pages.index_copy_(1, page_ids, pages.movedim(0, 1))


def allocate_tiled_cache(
    config: DecoderConfig, *, num_pages: int, page_size: int, dtype: torch.dtype
) -> TiledKvCache:
    """Return a cache of zeros: see :meth:`~.protocol.Kernels.allocate_kv_cache`."""
    # The reference's cache takes as much memory, and is refused with the same words.
    plain = allocate_kv_cache(
        config, num_pages=num_pages, page_size=page_size, dtype=dtype
    )
    page_numbers = page_size * config.head_dim
    shape = (config.num_layers, num_pages, config.num_kv_heads, 2, page_numbers)
    return TiledKvCache(plain.pages.view(shape), page_size)
