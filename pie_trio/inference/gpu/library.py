"""FlashInfer as far as we use it, whether it is there, and for which models it has kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.models.config import DecoderConfig

__all__ = [
    "DecodeWrapper",
    "FlashInfer",
    "PrefillWrapper",
    "find_flashinfer",
    "needs_tensor_cores",
    "why_no_gpu",
    "why_not",
]

_HEAD_DIMS = (64, 128, 256)
_DECODE_GROUPS = (1, 2, 3, 4, 6, 8)
_MIN_TENSOR_CORE_GROUP = 4
_VECTOR_BYTES = 16


class DecodeWrapper(Protocol):
    """``BatchDecodeWithPagedKVCacheWrapper``: one new token a request, no masks."""

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        **options: Any,
    ) -> None:
        """Prepare a batch; ``indptr``, ``last_page_len`` and ``seq_lens`` are on the host."""
        ...

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor
    ) -> Tensor:
        """Attend over one layer of what was planned."""
        ...


class PrefillWrapper(Protocol):
    """``BatchPrefillWithPagedKVCacheWrapper``: any number of new tokens, and masks."""

    _mask_indptr_buf: Tensor

    def plan(
        self,
        qo_indptr: Tensor,
        paged_kv_indptr: Tensor,
        paged_kv_indices: Tensor,
        paged_kv_last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        page_size: int,
        **options: Any,
    ) -> None:
        """As of the other one."""
        ...

    def run(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor
    ) -> Tensor:
        """As of the other one."""
        ...

    def run_return_lse(
        self, q: Tensor, paged_kv_cache: tuple[Tensor, Tensor], *, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return besides ``[nnz, num_heads]`` float32, logarithms to base 2 of the sums."""
        ...


class FlashInfer(Protocol):
    """The functions of the module ``flashinfer`` that we call, with the arguments that we give."""

    @property
    def __version__(self) -> str: ...

    def BatchDecodeWithPagedKVCacheWrapper(  # noqa: N802, D102 -- FlashInfer's
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
    ) -> DecodeWrapper: ...

    def BatchPrefillWithPagedKVCacheWrapper(  # noqa: N802, D102 -- FlashInfer's
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        *,
        backend: str = "auto",
    ) -> PrefillWrapper: ...

    def append_paged_kv_cache(  # noqa: D102
        self,
        append_key: Tensor,
        append_value: Tensor,
        batch_indices: Tensor,
        positions: Tensor,
        paged_kv_cache: tuple[Tensor, Tensor],
        kv_indices: Tensor,
        kv_indptr: Tensor,
        kv_last_page_len: Tensor,
        kv_layout: str = "NHD",
    ) -> None: ...

    def merge_state_in_place(  # noqa: D102
        self, v: Tensor, s: Tensor, v_other: Tensor, s_other: Tensor
    ) -> None: ...

    def apply_rope_with_cos_sin_cache_inplace(  # noqa: D102
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        head_size: int,
        cos_sin_cache: Tensor,
        is_neox: bool = True,
    ) -> None: ...

    def rmsnorm(self, input: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor: ...  # noqa: A002, D102

    def fused_add_rmsnorm(  # noqa: D102
        self,
        input: Tensor,  # noqa: A002
        residual: Tensor,
        weight: Tensor,
        eps: float = 1e-6,
    ) -> None: ...

    def silu_and_mul(self, input: Tensor) -> Tensor: ...  # noqa: A002, D102

    def gelu_tanh_and_mul(self, input: Tensor) -> Tensor: ...  # noqa: A002, D102


def find_flashinfer() -> FlashInfer | str:
    """Import FlashInfer; return why it cannot be used where it cannot. Takes seconds."""
    try:
        import flashinfer  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        return f"FlashInfer cannot be imported ({error}): pip install 'pie-trio[cuda]'"
    return cast("FlashInfer", flashinfer)


def why_no_gpu() -> str:
    """Say why this machine has no GPU that could be used; an empty string if it has one."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    major, minor = torch.cuda.get_device_capability()
    if major < 8:
        return f"the GPU has compute capability {major}.{minor}, and bfloat16 needs 8.0"
    return ""


def why_not(config: DecoderConfig, dtype: torch.dtype, *, is_int8: bool = False) -> str:
    """Say why a model cannot run on FlashInfer's kernels; an empty string if it can."""
    if is_int8:
        return "8 bits are for the CPU: leave out --quantize"
    if dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        return f"the kernels compute in bfloat16, not in {name}: add --dtype bfloat16"
    if config.head_dim not in _HEAD_DIMS:
        known = ", ".join(map(str, _HEAD_DIMS))
        return f"heads have {config.head_dim} dimensions, and there are kernels for {known}"
    sizes = {config.hidden_size, config.intermediate_size}
    if any(size * dtype.itemsize % _VECTOR_BYTES for size in sizes):
        return f"the kernels want sizes that are multiples of 8, unlike {sorted(sizes)}"
    return ""


def needs_tensor_cores(num_heads: int, num_kv_heads: int) -> bool:
    """Say whether decodes run on tensor cores: where that is faster, or the only way."""
    group = num_heads // num_kv_heads
    return group >= _MIN_TENSOR_CORE_GROUP or group not in _DECODE_GROUPS
