"""What a step is made of; torch, the built library and FlashInfer each implement all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from pie_trio.engine_api import Batch, PageCopy
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import (
        Activation,
        AttentionConfig,
        DecoderConfig,
    )
    from pie_trio.inference.models.decoder import Attention
    from pie_trio.inference.models.ops import Linear

__all__ = ["Kernels", "LinearLayer", "PagedCache", "Rotation"]

Rotation = tuple["Tensor", "Tensor"]
"""Cosine and sine of a batch's angles, as the kernels that made them want them."""


class LinearLayer(Protocol):
    """A linear layer, however its weights are stored."""

    @property
    def weight(self) -> Tensor:
        """``[num_outputs, num_inputs]``; what its numbers mean is up to the layer."""
        ...

    @property
    def bias(self) -> Tensor | None:
        """``[num_outputs]``, or None."""
        ...

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """Return ``[num_rows, num_outputs]`` for ``[num_rows, num_inputs]``."""
        ...


class PagedCache(Protocol):
    """Keys and values of every page and layer, laid out as the kernels like it best."""

    @property
    def page_size(self) -> int:
        """Tokens in a page."""
        ...

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Copy tokens between pages, in order; a copy sees what the ones before it wrote."""
        ...

    def clear(self, slots: Tensor) -> None:
        """Write zeros into some slots (``[n]`` int64) of all layers."""
        ...

    def read(self, page_ids: Tensor) -> Tensor:
        """Return ``[len(page_ids), page_bytes]`` uint8, a copy of these pages."""
        ...

    def write(self, page_ids: Tensor, data: Tensor) -> None:
        """Write what :meth:`read` returned into different pages, or the same ones."""
        ...


class Kernels(Protocol):
    """The operations of a step. All take and return float32 or bfloat16 on one device.

    In one row of a result nothing depends on the other rows of a call.
    """

    @property
    def name(self) -> str:
        """For people: which implementation this is."""
        ...

    @property
    def device(self) -> torch.device:
        """Where weights, cache and everything in between are."""
        ...

    def allocate_kv_cache(
        self,
        config: DecoderConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
    ) -> PagedCache:
        """Return a cache of zeros, for :meth:`plan_attention`.

        Raises:
            ConfigError: The sizes are not positive, or the memory cannot be had.
        """
        ...

    def plan_attention(
        self,
        batch: Batch,
        metadata: BatchMetadata,
        kv_cache: PagedCache,
        config: AttentionConfig,
    ) -> Attention:
        """Prepare the attention of a batch once for all layers."""
        ...

    def pack_linear(self, linear: Linear) -> LinearLayer:
        """Return a layer as it is fastest; the same one where nothing is gained."""
        ...

    def norm_weight(self, weight: Tensor) -> Tensor:
        """Return the weight of a norm as :meth:`rms_norm` and :meth:`turn_heads` take it."""
        ...

    def rms_norm(self, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Return ``[num_rows, D]`` with vectors of root mean square 1, times ``weight``.

        Args:
            inputs: ``[num_rows, D]``.
            weight: ``[D]``, what :meth:`norm_weight` returned.
            eps: Added to the mean square.
        """
        ...

    def add_rms_norm(
        self, hidden: Tensor, added: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the sum of two, and what :meth:`rms_norm` makes of it.

        Args:
            hidden: ``[num_rows, D]``; may be written over.
            added: As ``hidden``; may be written over.
            weight: As of :meth:`rms_norm`.
            eps: As of :meth:`rms_norm`.
        """
        ...

    def rotation(self, angles: Tensor, factor: float, dtype: torch.dtype) -> Rotation:
        """Return cosine and sine, both times ``factor``.

        Args:
            angles: ``[num_tokens, 1, R / 2]`` float32.
            factor: For what some rotary embeddings scale their queries and keys with.
            dtype: Of the heads to rotate.
        """
        ...

    def turn_heads(
        self,
        heads: Tensor,
        norm: Tensor | None,
        eps: float,
        rotation: Rotation | None,
    ) -> Tensor:
        """Norm each head, then rotate the pairs (i, i + R/2) of its first R dimensions.

        Args:
            heads: ``[num_tokens, num_heads, D]``, of which each token's heads lie together.
                They may be written over.
            norm: ``[num_heads, D]``, what :meth:`norm_weight` returned; None for no norm.
            eps: As in :meth:`rms_norm`.
            rotation: None for no rotation.

        Returns:
            As ``heads``.
        """
        ...

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:
        """Return ``[num_rows, D]``, the activated first half of ``[num_rows, 2 D]`` times the second."""
        ...

    def quantize_rows(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row in bytes around 128, scaled by its own largest number.

        Args:
            inputs: ``[num_rows, D]``.

        Returns:
            ``[num_rows, D]`` uint8 ``q`` and ``[num_rows, 1]`` float32 ``scale``, so that
            ``(q - 128) * scale`` is nearly ``inputs``. A row that is not finite has a scale
            that is not either.
        """
        ...

    def scale_rows(self, outputs: Tensor, scales: Tensor) -> Tensor:
        """Multiply each row of ``[num_rows, D]`` by its own of ``[num_rows, 1]``, in place."""
        ...
