"""The operations of a step in C++: hands the memory of tensors to the library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pie_trio.inference.kernels.library import Batch as BatchStruct
from pie_trio.inference.kernels.library import Shape
from pie_trio.inference.kernels.linears import pack
from pie_trio.inference.kernels.native_linear import pack_native
from pie_trio.inference.kernels.tiled_cache import allocate_tiled_cache

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.kernels.library import Library
    from pie_trio.inference.kernels.protocol import LinearLayer, PagedCache, Rotation
    from pie_trio.inference.kernels.tiled_cache import TiledKvCache
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import (
        Activation,
        AttentionConfig,
        DecoderConfig,
    )
    from pie_trio.inference.models.ops import Linear

__all__ = ["MAX_HEAD_DIM", "NativeKernels"]

MAX_HEAD_DIM = 512  # of kernels.cpp

# Operations on fewer numbers take less than 20 us.
_SHORT = 1 << 16


class NativeKernels:
    """See :class:`~.protocol.Kernels`, here and below."""

    device = torch.device("cpu")

    def __init__(self, library: Library) -> None:
        """Use a library that was loaded."""
        self._library = library

    @property
    def name(self) -> str:  # noqa: D102
        return f"native ({self._library.name})"

    def allocate_kv_cache(  # noqa: D102
        self,
        config: DecoderConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: torch.dtype,
    ) -> TiledKvCache:
        return allocate_tiled_cache(
            config, num_pages=num_pages, page_size=page_size, dtype=dtype
        )

    def plan_attention(  # noqa: D102
        self,
        batch: Batch,
        metadata: BatchMetadata,
        kv_cache: PagedCache,
        config: AttentionConfig,
    ) -> NativeAttention:
        cache = cast("TiledKvCache", kv_cache)  # what allocate_kv_cache returned
        masks = [forward.mask for forward in batch.forwards]
        if all(mask is None for mask in masks):
            masks = []
        arrays = _Arrays(metadata, masks)
        return NativeAttention(self._library, cache, config, arrays)

    def pack_linear(self, linear: Linear) -> LinearLayer:  # noqa: D102
        return pack_native(linear, self._library) or pack(linear)

    def norm_weight(self, weight: Tensor) -> Tensor:  # noqa: D102
        return weight.float().contiguous()

    def rms_norm(self, inputs: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: D102
        inputs = inputs.contiguous()
        num_rows, width = inputs.shape
        assert weight.dtype == torch.float32, "norm_weight made it"
        result = torch.empty_like(inputs)
        self._functions(inputs).pie_rms_norm(
            _is_bf16(inputs),
            inputs.data_ptr(),
            weight.data_ptr(),
            result.data_ptr(),
            num_rows,
            width,
            eps,
        )
        return result

    def add_rms_norm(  # noqa: D102
        self, hidden: Tensor, added: Tensor, weight: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        hidden = hidden + added
        return hidden, self.rms_norm(hidden, weight, eps)

    def rotation(self, angles: Tensor, factor: float, dtype: torch.dtype) -> Rotation:  # noqa: D102
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)

    def turn_heads(  # noqa: D102
        self,
        heads: Tensor,
        norm: Tensor | None,
        eps: float,
        rotation: Rotation | None,
    ) -> Tensor:
        num_tokens, num_heads, head_dim = heads.shape
        assert heads.stride()[1:] == (head_dim, 1), "a token's heads lie together"
        cos, sin = rotation or (None, None)
        self._functions(heads).pie_norm_and_rotate(
            _is_bf16(heads),
            heads.data_ptr(),
            heads.stride(0),
            num_tokens,
            num_heads,
            head_dim,
            None if norm is None else norm.data_ptr(),
            eps,
            None if cos is None else cos.data_ptr(),
            None if sin is None else sin.data_ptr(),
            0 if cos is None else cos.shape[-1],
        )
        return heads

    def gated(self, gate_up: Tensor, activation: Activation) -> Tensor:  # noqa: D102
        gate_up = gate_up.contiguous()
        num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        result = gate_up.new_empty(num_rows, width)
        self._functions(gate_up).pie_gated(
            _is_bf16(gate_up),
            gate_up.data_ptr(),
            result.data_ptr(),
            num_rows,
            width,
            activation == "gelu_tanh",
        )
        return result

    def quantize_rows(self, inputs: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        inputs = inputs.contiguous()
        num_rows, width = inputs.shape
        quantized = torch.empty((num_rows, width), dtype=torch.uint8)
        scales = torch.empty((num_rows, 1))
        self._functions(inputs).pie_quantize(
            _is_bf16(inputs),
            inputs.data_ptr(),
            quantized.data_ptr(),
            scales.data_ptr(),
            num_rows,
            width,
        )
        return quantized, scales

    def scale_rows(self, outputs: Tensor, scales: Tensor) -> Tensor:  # noqa: D102
        assert outputs.is_contiguous(), "they are fresh from a linear layer"
        self._functions(outputs).pie_scale_rows(
            _is_bf16(outputs), outputs.data_ptr(), scales.data_ptr(), *outputs.shape
        )
        return outputs

    def _functions(self, tensor: Tensor) -> ctypes.CDLL:
        library = self._library
        is_short = tensor.numel() < _SHORT
        return library.short_functions if is_short else library.functions


class _Arrays:
    """The metadata of a batch as the library reads them, for as long as this lives."""

    def __init__(
        self, metadata: BatchMetadata, masks: Sequence[NDArray[np.bool_] | None]
    ) -> None:
        self._kept: list[NDArray[Any] | None] = [
            None if mask is None else np.ascontiguousarray(mask) for mask in masks
        ]
        addresses = [0 if mask is None else mask.ctypes.data for mask in self._kept]
        fields = (
            metadata.page_ids,
            metadata.page_indptr,
            metadata.kv_lens,
            metadata.qo_indptr,
            metadata.write_slots,
            np.array(addresses, np.uintp),
        )
        self._kept += fields
        pointers = [field.ctypes.data for field in fields]
        if not masks:
            pointers[-1] = 0
        self.struct = BatchStruct(
            metadata.num_requests, len(metadata.token_ids), *pointers
        )


@dataclass(frozen=True, slots=True)
class NativeAttention:
    """The attention of one batch; an :class:`~..models.decoder.Attention`."""

    library: Library
    kv_cache: TiledKvCache
    config: AttentionConfig
    arrays: _Arrays

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new keys and values, then attend: see :class:`Attention`."""
        num_tokens, num_heads, head_dim = query.shape
        assert key.stride() == value.stride(), "they are parts of one tensor"
        for tensor in (query, key):
            assert tensor.stride()[1:] == (head_dim, 1), "a token's heads lie together"
        config = self.config
        shape = Shape(
            num_heads,
            key.shape[1],
            head_dim,
            self.kv_cache.page_size,
            config.scale,
            config.softcap or 0.0,
        )
        result = query.new_empty(num_tokens, num_heads * head_dim)
        self.library.functions.pie_attention(
            _is_bf16(query),
            shape,
            self.arrays.struct,
            self.kv_cache.layer_addresses[layer],
            config.windows[config.window_of_layer[layer]] or 0,
            query.data_ptr(),
            query.stride(0),
            key.data_ptr(),
            value.data_ptr(),
            key.stride(0),
            result.data_ptr(),
        )
        return result


def _is_bf16(tensor: Tensor) -> int:
    return int(tensor.dtype == torch.bfloat16)
