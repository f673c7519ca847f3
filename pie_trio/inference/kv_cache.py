"""What lives on the device between steps: the pages of the KV cache, and hidden states.

Who holds which page or place is the control layer's business.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pie_trio.engine_api import PageCopy
    from pie_trio.inference.models.config import DecoderConfig

__all__ = [
    "KvCache",
    "allocate_embeds",
    "allocate_kv_cache",
    "kv_bytes_per_page",
    "num_pages_in",
]


ALIGNMENT = 64
"""Bytes of a line of the processor's caches."""


class KvCache:
    """Keys (rotated) and values of every page and layer.

    A slot is the place of one token: ``page_id * page_size + offset``.

    Attributes:
        pages: ``[num_layers, 2, num_pages, page_size, num_kv_heads, head_dim]``; keys are at
            index 0 of the second dimension, values at 1.
        key_bytes: Bytes of the keys of one token in one layer.
    """

    def __init__(self, pages: Tensor) -> None:
        self.pages = pages
        # [L, 2, num_slots, KV, D], the same memory
        self._slots = pages.flatten(2, 3)
        self._layers = [(layer[0], layer[1]) for layer in self._slots]
        self.key_bytes = self._layers[0][0][0].nbytes

    @property
    def num_pages(self) -> int:
        """Pages in the cache."""
        return self.pages.shape[2]

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        return self.pages.shape[3]

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of a layer, each ``[num_slots, num_kv_heads, head_dim]``."""
        return self._layers[index]

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy tokens between pages, in order; a copy sees what the ones before it wrote."""
        for copy in copies:
            source = copy.source * self.page_size + copy.source_offset
            target = copy.target * self.page_size + copy.target_offset
            tokens = self._slots[:, :, source : source + copy.count]
            if copy.source == copy.target:
                tokens = tokens.clone()  # the two ranges may overlap
            self._slots[:, :, target : target + copy.count] = tokens

    def clear(self, slots: Tensor) -> None:
        """Write zeros into some slots of all layers."""
        self._slots.index_fill_(2, slots, 0.0)

    def read(self, page_ids: Tensor) -> Tensor:
        """Return ``[len(page_ids), page_bytes]`` uint8, a copy of these pages."""
        pages = self.pages.index_select(2, page_ids).movedim(2, 0).contiguous()
        return pages.flatten(1).view(torch.uint8)

    def write(self, page_ids: Tensor, data: Tensor) -> None:
        """Write what :meth:`read` returned into different pages, or the same ones."""
        if not len(page_ids):  # nothing cannot be seen as numbers
            return
        shape = (len(page_ids), *self.pages[:, :, 0].shape)
        pages = data.view(self.pages.dtype).view(shape)
        self.pages.index_copy_(2, page_ids, pages.movedim(0, 2))


def kv_bytes_per_page(
    config: DecoderConfig, *, page_size: int, dtype: torch.dtype
) -> int:
    """Return the memory that one page takes in all layers."""
    values_per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return page_size * values_per_token * dtype.itemsize


def num_pages_in(
    kv_bytes: int, config: DecoderConfig, *, page_size: int, dtype: torch.dtype
) -> int:
    """Return how many pages fit in ``kv_bytes``.

    Raises:
        ConfigError: Not even one does.
    """
    page_bytes = kv_bytes_per_page(config, page_size=page_size, dtype=dtype)
    num_pages = kv_bytes // page_bytes
    if num_pages < 1:
        raise ConfigError(
            f"a KV page of {page_size} tokens takes {page_bytes:,} bytes, but only "
            f"{kv_bytes:,} are given: give more memory, or choose smaller pages"
        )
    return num_pages


def allocate_kv_cache(
    config: DecoderConfig, *, num_pages: int, page_size: int, dtype: torch.dtype
) -> KvCache:
    """Return a cache of zeros.

    Zeros, because a masked slot is multiplied by a probability of 0, and stale memory may
    hold NaN or infinity, which 0 does not make harmless.

    Raises:
        ConfigError: The sizes are not positive, or the memory cannot be had.
    """
    if num_pages < 1 or page_size < 1:
        raise ConfigError(
            "expected at least one KV page of at least one token, but got "
            f"{num_pages} pages of {page_size}: give positive numbers"
        )
    shape = (
        config.num_layers,
        2,
        num_pages,
        page_size,
        config.num_kv_heads,
        config.head_dim,
    )
    try:
        return KvCache(_lazy_zeros(shape, dtype))
    except (RuntimeError, MemoryError, ValueError) as error:
        page_bytes = kv_bytes_per_page(config, page_size=page_size, dtype=dtype)
        raise ConfigError(
            f"the KV cache needs {num_pages} pages of {page_bytes:,} bytes, "
            f"{num_pages * page_bytes:,} in all, which cannot be allocated: "
            "start with fewer --kv-pages"
        ) from error


def _lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that take memory where they are written: torch writes all of them."""
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    used = memory[start : start + num_bytes]
    zeros = torch.from_numpy(used)  # pyright: ignore[reportUnknownMemberType] -- torch
    return zeros.view(dtype).view(shape)


def allocate_embeds(
    config: DecoderConfig, *, num_embeds: int, dtype: torch.dtype
) -> Tensor:
    """Return ``[num_embeds, hidden_size]`` zeros, places for hidden states.

    Raises:
        ConfigError: The number is negative, or the memory cannot be had.
    """
    if num_embeds < 0:
        raise ConfigError(
            f"expected zero or more places for hidden states, but got {num_embeds}"
        )
    try:
        return torch.zeros((num_embeds, config.hidden_size), dtype=dtype)
    except (RuntimeError, MemoryError) as error:
        num_bytes = num_embeds * config.hidden_size * dtype.itemsize
        raise ConfigError(
            f"{num_embeds} places for hidden states need {num_bytes:,} bytes, which cannot "
            "be allocated: start with fewer"
        ) from error
