"""The KV cache on a device, in the layout that FlashInfer calls NHD."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from pie_trio.errors import ConfigError
from pie_trio.inference.kv_cache import KvCache, kv_bytes_per_page

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.models.config import DecoderConfig

__all__ = ["DeviceKvCache", "allocate_device_cache"]


class DeviceKvCache(KvCache):
    """As :class:`KvCache`, with one more page, for requests that only pad a batch.

    Attributes:
        num_heads: Of queries; FlashInfer plans with it.
        layers: Of each layer keys and values, ``[num_pages + 1, page_size, num_kv_heads,
            head_dim]`` each.
    """

    def __init__(self, pages: Tensor, num_heads: int) -> None:
        super().__init__(pages)
        self.num_heads = num_heads
        self.layers = [(layer[0], layer[1]) for layer in pages]

    @property
    def scratch_page(self) -> int:
        """The page that the control layer does not know of."""
        return self.num_pages - 1

    @property
    def page_bytes(self) -> int:
        """Of one page in all layers."""
        return self.pages.nbytes // self.pages.shape[2]

    @property
    def num_kv_heads(self) -> int:
        """Of keys and values."""
        return self.pages.shape[4]

    @property
    def head_dim(self) -> int:
        """Of all heads."""
        return self.pages.shape[5]


def allocate_device_cache(
    config: DecoderConfig,
    *,
    num_pages: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> DeviceKvCache:
    """Return a cache of zeros; see :func:`~..kv_cache.allocate_kv_cache`.

    Raises:
        ConfigError: The sizes are not positive, or the memory cannot be had.
    """
    if num_pages < 1 or page_size < 1:
        raise ConfigError(
            "expected at least one KV page of at least one token, but got "
            f"{num_pages} pages of {page_size}: give positive numbers"
        )
    tokens = (page_size, config.num_kv_heads, config.head_dim)
    shape = (config.num_layers, 2, num_pages + 1, *tokens)
    try:
        pages = torch.zeros(shape, dtype=dtype, device=device)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        page_bytes = kv_bytes_per_page(config, page_size=page_size, dtype=dtype)
        raise ConfigError(
            f"the KV cache needs {num_pages:,} pages of {page_bytes:,} bytes, "
            f"{num_pages * page_bytes:,} in all, which {device} does not have: start with "
            "fewer --kv-pages"
        ) from error
    return DeviceKvCache(pages, config.num_heads)
