"""The operations of a step on a GPU: FlashInfer for what it has, torch for the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from pie_trio.inference.gpu.cache import DeviceKvCache, allocate_device_cache
from pie_trio.inference.gpu.lora import AdapterPlans, find_lora
from pie_trio.inference.gpu.planning import Planner
from pie_trio.inference.gpu.upload import Uploader
from pie_trio.inference.kernels.reference import TorchKernels
from pie_trio.inference.models import ops
from pie_trio.inference.paging.buckets import BUCKETS
from pie_trio.inference.paging.cascade import CascadeRule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.gpu.attention import FlashInferAttention
    from pie_trio.inference.gpu.library import FlashInfer
    from pie_trio.inference.gpu.lora import LoraKernels
    from pie_trio.inference.gpu.runtime import Runtime
    from pie_trio.inference.kernels.protocol import LinearLayer, PagedCache, Rotation
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import (
        Activation,
        AttentionConfig,
        DecoderConfig,
    )
    from pie_trio.inference.models.ops import Linear

__all__ = ["FlashInferKernels"]


class FlashInferKernels(TorchKernels):
    """See :class:`~..kernels.protocol.Kernels`, here and below.

    Rotations are FlashInfer's with a table that is made for the batch: cosine and sine of each
    token's angles, so that row i is token i. Thus positions have no bound, every scaling of
    frequencies is the one of the CPU, and angles are as precise as there (the kernels that
    compute angles themselves take the fast sine, which is inexact far from zero).
    """

    def __init__(
        self,
        library: FlashInfer,
        runtime: Runtime,
        *,
        buckets: Sequence[int] = BUCKETS,
        cascade: CascadeRule | None = None,
        lora: LoraKernels | None = None,
    ) -> None:
        """Use a library that was imported, on one device.

        Args:
            library: Its functions.
            runtime: The device.
            buckets: Sizes of the batches that decode by a graph.
            lora: Compute adapters; None takes Triton's where there is a GPU, else torch.
            cascade: When common beginnings are read only once; None for the usual rule.
        """
        self.buckets = tuple(buckets)
        self.cascade = cascade or CascadeRule()
        self.library, self.runtime = library, runtime
        self.device = runtime.device
        self.name = f"FlashInfer {library.__version__} on {runtime.device}"
        self.planner = Planner(library, runtime)
        lora = lora or find_lora(runtime.device)
        self.adapters = None if lora is None else AdapterPlans(lora)
        self.uploader = Uploader(runtime)

    def allocate_kv_cache(  # noqa: D102
        self,
        config: DecoderConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
    ) -> DeviceKvCache:
        return allocate_device_cache(
            config,
            num_pages=num_pages,
            page_size=page_size,
            dtype=dtype,
            device=self.device,
        )

    def plan_attention(  # noqa: D102
        self,
        batch: Batch,
        metadata: BatchMetadata,
        kv_cache: PagedCache,
        config: AttentionConfig,
    ) -> FlashInferAttention:
        cache = cast("DeviceKvCache", kv_cache)  # what allocate_kv_cache returned
        prepared = self.planner.prepare(batch, metadata, config)
        tensors = self.uploader.upload(prepared.arrays)
        return self.planner.plan(prepared, tensors, cache, config)

    def pack_linear(self, linear: Linear) -> LinearLayer:  # noqa: D102
        return linear

    def norm_weight(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.to(self.device).contiguous()

    def rms_norm(self, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: D102
        if weight.dtype != inputs.dtype:  # Gemma's norms, see models.loading
            return ops.rms_norm(inputs, weight, eps)
        return self.library.rmsnorm(inputs, weight, eps)

    def add_rms_norm(  # noqa: D102
        self, hidden: Tensor, added: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        if weight.dtype != hidden.dtype:
            hidden = hidden.add_(added)
            return hidden, ops.rms_norm(hidden, weight, eps)
        self.library.fused_add_rmsnorm(added, hidden, weight, eps)
        return hidden, added

    def rotation(self, angles: Tensor, factor: float, dtype: torch.dtype) -> Rotation:  # noqa: D102
        del dtype  # the table is float32
        table = torch.cat((angles.cos(), angles.sin()), dim=-1).flatten(1)  # [T, R]
        if factor != 1.0:
            table = table.mul_(factor)
        rows = torch.arange(len(table), dtype=torch.int32, device=table.device)
        return table, rows

    def turn_heads(  # noqa: D102
        self,
        heads: Tensor,
        norm: Tensor | None,
        eps: float,
        rotation: Rotation | None,
    ) -> Tensor:
        if norm is not None:
            heads = ops.rms_norm(heads, norm, eps)
        if rotation is None or not rotation[0].shape[1]:
            return heads
        # Queries and keys turn alike, so where the one ends and the other begins is all the same.
        table, rows = rotation
        self.library.apply_rope_with_cos_sin_cache_inplace(
            rows,
            heads[:, :-1].flatten(1),
            heads[:, -1],
            heads.shape[2],
            table,
            is_neox=True,
        )
        return heads

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:  # noqa: D102
        gate_up = gate_up.contiguous()
        if activation == "silu":
            return self.library.silu_and_mul(gate_up)
        return self.library.gelu_tanh_and_mul(gate_up)
