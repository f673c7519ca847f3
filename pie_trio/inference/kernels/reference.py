"""The operations of a step in readable torch: what all others are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from pie_trio.inference.backends import torch_cpu
from pie_trio.inference.kernels.linears import pack
from pie_trio.inference.kv_cache import KvCache, allocate_kv_cache
from pie_trio.inference.models import ops

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.kernels.protocol import LinearLayer, PagedCache, Rotation
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import (
        Activation,
        AttentionConfig,
        DecoderConfig,
    )
    from pie_trio.inference.models.decoder import Attention
    from pie_trio.inference.models.ops import Linear

__all__ = ["TorchKernels"]

_ZERO_POINT = 128


class TorchKernels:
    """See :class:`~.protocol.Kernels`, here and below."""

    name: str = "torch"
    device = torch.device("cpu")

    def allocate_kv_cache(  # noqa: D102
        self,
        config: DecoderConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
    ) -> KvCache:
        return allocate_kv_cache(
            config, num_pages=num_pages, page_size=page_size, dtype=dtype
        )

    def plan_attention(  # noqa: D102
        self,
        batch: Batch,
        metadata: BatchMetadata,
        kv_cache: PagedCache,
        config: AttentionConfig,
    ) -> Attention:
        cache = cast("KvCache", kv_cache)  # what allocate_kv_cache returned
        return torch_cpu.plan_attention(batch, metadata, cache, config)

    def pack_linear(self, linear: Linear) -> LinearLayer:  # noqa: D102
        return pack(linear)

    def norm_weight(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight

    def rms_norm(self, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: D102
        return ops.rms_norm(inputs, weight, eps)

    def add_rms_norm(  # noqa: D102
        self, hidden: Tensor, added: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden + added
        return hidden, self.rms_norm(hidden, weight, eps)

    def rotation(self, angles: Tensor, factor: float, dtype: torch.dtype) -> Rotation:  # noqa: D102
        cos, sin = angles.cos(), angles.sin()
        if factor != 1.0:
            cos, sin = cos * factor, sin * factor
        return cos.to(dtype), sin.to(dtype)

    def turn_heads(  # noqa: D102
        self,
        heads: Tensor,
        norm: Tensor | None,
        eps: float,
        rotation: Rotation | None,
    ) -> Tensor:
        if norm is not None:
            heads = ops.rms_norm(heads, norm, eps)
        return heads if rotation is None else ops.rotate(heads, *rotation)

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:  # noqa: D102
        return ops.gated(gate_up, activation)

    def quantize_rows(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        numbers = inputs.float()
        largest = numbers.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
        quantized = (numbers * (127.0 / largest)).round().add_(_ZERO_POINT)
        return quantized.to(torch.uint8), largest / 127.0

    def scale_rows(self, outputs: Tensor, scales: Tensor) -> Tensor:  # noqa: D102
        return outputs.mul_(scales)
