"""FlashInfer's interface on the CPU: it checks what it is given, and computes in plain torch.

Signatures are those of the library (``test_fake_flashinfer.py`` compares them where it is
installed), and so are its traps: masks that were packed by the caller are found at the wrong
place, a plan that does not belong to the batch gives nonsense (here an error), and rows that see
nothing give numbers that mean nothing (here NaN).
"""

from __future__ import annotations

import math
from functools import partialmethod
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

from tests.inference.gpu.fake_runtime import kernel

if TYPE_CHECKING:
    from torch import Tensor

CPU = torch.device("cpu")
MAX_PLAN = 1 << 16
"""Numbers that a plan may take."""


class MisuseError(AssertionError):
    """The library would have failed, or worse."""


def expect(condition: bool, message: str) -> None:
    if not condition:
        raise MisuseError(message)


def check_host(tensor: Tensor, name: str, length: int | None = None) -> None:
    expect(isinstance(tensor, torch.Tensor), f"{name} is no tensor")
    expect(tensor.dtype == torch.int32, f"{name} is {tensor.dtype}, not int32")
    expect(
        tensor.device == CPU, f"{name} is on {tensor.device}: plan would wait for it"
    )
    expect(tensor.dim() == 1 and tensor.is_contiguous(), f"{name} is no flat vector")
    expect(length is None or len(tensor) == length, f"{name} has {len(tensor)} numbers")


def check_ints(tensor: Tensor, name: str, length: int | None = None) -> None:
    expect(tensor.dtype == torch.int32, f"{name} is {tensor.dtype}, not int32")
    expect(tensor.dim() == 1 and tensor.is_contiguous(), f"{name} is no flat vector")
    expect(length is None or len(tensor) == length, f"{name} has {len(tensor)} numbers")


class FakeFlashInfer:
    """As the module ``flashinfer``.

    Attributes:
        calls: Names of what was called, in order.
    """

    __version__ = "0.6.18.post1"

    def __init__(
        self,
        *,
        dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float16),
        head_dims: tuple[int, ...] | None = (64, 128, 256),
    ) -> None:
        """Choose what is refused.

        Args:
            dtypes: Of the kernels. The library has none for float32; tests that compare with
                exact answers allow it.
            head_dims: As ``dtypes``; None for any.
        """
        self.dtypes, self.head_dims = dtypes, head_dims
        self.calls: list[str] = []
        self.wrappers: list[_Wrapper] = []

    def BatchDecodeWithPagedKVCacheWrapper(  # noqa: N802 -- FlashInfer's
        self, *args: Any, **kwargs: Any
    ) -> DecodeWrapper:
        wrapper = DecodeWrapper(*args, **kwargs)
        wrapper.adopt(self)
        return wrapper

    def BatchPrefillWithPagedKVCacheWrapper(  # noqa: N802 -- FlashInfer's
        self, *args: Any, **kwargs: Any
    ) -> PrefillWrapper:
        wrapper = PrefillWrapper(*args, **kwargs)
        wrapper.adopt(self)
        return wrapper

    def append_paged_kv_cache(
        self,
        append_key: Tensor,
        append_value: Tensor,
        batch_indices: Tensor,
        positions: Tensor,
        paged_kv_cache: Any,
        kv_indices: Tensor,
        kv_indptr: Tensor,
        kv_last_page_len: Tensor,
        kv_layout: str = "NHD",
    ) -> None:
        self.calls.append("append_paged_kv_cache")
        keys, values = paged_kv_cache
        num_tokens, num_heads, head_dim = append_key.shape
        expect(kv_layout == "NHD", f"layout {kv_layout}")
        for name, tensor in (("key", append_key), ("value", append_value)):
            self._check_dtype(tensor, name)
            expect(tensor.stride(-1) == 1, f"the last dimension of {name} is strided")
            expect(tensor.shape == (num_tokens, num_heads, head_dim), f"{name}'s shape")
        for tensor in (keys, values):
            expect(tensor.dim() == 4 and tensor.is_contiguous(), "pages of NHD")
            expect(tensor.shape[2:] == (num_heads, head_dim), "heads of the cache")
            expect(tensor.dtype == append_key.dtype, "dtype of the cache")
        check_ints(batch_indices, "batch_indices", num_tokens)
        check_ints(positions, "positions", num_tokens)
        check_ints(kv_indices, "kv_indices")
        check_ints(kv_last_page_len, "kv_last_page_len")
        check_ints(kv_indptr, "kv_indptr", len(kv_last_page_len) + 1)

        def run() -> None:
            page_size = keys.shape[1]
            for token, (owner, slot) in enumerate(
                zip(batch_indices.tolist(), positions.tolist(), strict=True)
            ):
                start, stop = kv_indptr[owner : owner + 2].tolist()
                expect(0 <= slot // page_size < stop - start, "a slot beyond the pages")
                page = int(kv_indices[start + slot // page_size])
                expect(0 <= page < len(keys), f"page {page} of {len(keys)}")
                keys[page, slot % page_size] = append_key[token]
                values[page, slot % page_size] = append_value[token]

        kernel(run)

    def merge_state_in_place(
        self,
        v: Tensor,
        s: Tensor,
        v_other: Tensor,
        s_other: Tensor,
        mask: Tensor | None = None,
    ) -> None:
        self.calls.append("merge_state_in_place")
        for tensor in (v, v_other):
            self._check_dtype(tensor, "a state")
            expect(tensor.is_contiguous(), "states are contiguous")
            expect(tensor.shape == v.shape, "states of one shape")
        for tensor in (s, s_other):
            expect(tensor.dtype == torch.float32, "another dtype would be a copy")
            expect(tensor.shape == v.shape[:2], "a sum for each head")

        def run() -> None:
            share = torch.exp2(s_other - torch.logaddexp2(s, s_other))[..., None]
            v.copy_(v.float() * (1.0 - share) + v_other.float() * share)
            s.copy_(torch.logaddexp2(s, s_other))

        kernel(run)

    def apply_rope_with_cos_sin_cache_inplace(
        self,
        positions: Tensor,
        query: Tensor,
        key: Tensor,
        head_size: int,
        cos_sin_cache: Tensor,
        is_neox: bool = True,
    ) -> None:
        self.calls.append("apply_rope_with_cos_sin_cache_inplace")
        expect(cos_sin_cache.dtype == torch.float32, "cos_sin_cache should be float32")
        expect(cos_sin_cache.is_contiguous(), "cos_sin_cache is not contiguous")
        check_ints(positions, "positions", len(query))
        self._check_head_dim(head_size)
        expect(is_neox, "only pairs (i, i + R / 2) are needed")
        heads = [x.view(x.shape[0], -1, head_size) for x in (query, key)]
        expect(len(query) == len(key), "as many keys as queries")
        half = cos_sin_cache.shape[1] // 2

        def run() -> None:
            table = cos_sin_cache[positions.long()][:, None]
            cos, sin = table[..., :half], table[..., half:]
            for part in heads:
                self._check_dtype(part, "a head")
                first, second = (
                    part[..., :half].float(),
                    part[..., half : 2 * half].float(),
                )
                turned = first * cos - second * sin, second * cos + first * sin
                part[..., : 2 * half] = torch.cat(turned, -1).to(part.dtype)

        kernel(run)

    def rmsnorm(
        self,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        eps: float = 1e-6,
        out: Tensor | None = None,
        enable_pdl: bool | None = None,
    ) -> Tensor:
        self.calls.append("rmsnorm")
        self._check_norm(input, weight)
        result = torch.empty_like(input) if out is None else out
        kernel(lambda: result.copy_(_norm(input.float(), weight, eps)))
        return result

    def fused_add_rmsnorm(
        self,
        input: Tensor,  # noqa: A002
        residual: Tensor,
        weight: Tensor,
        eps: float = 1e-6,
        enable_pdl: bool | None = None,
    ) -> None:
        self.calls.append("fused_add_rmsnorm")
        self._check_norm(input, weight)
        self._check_norm(residual, weight)
        expect(input.shape == residual.shape, "shapes of input and residual")
        expect(input.data_ptr() != residual.data_ptr(), "input and residual are one")

        def run() -> None:
            total = input.float() + residual.float()
            residual.copy_(total)
            input.copy_(_norm(total, weight, eps))

        kernel(run)

    def silu_and_mul(
        self,
        input: Tensor,  # noqa: A002
        out: Tensor | None = None,
        enable_pdl: bool | None = None,
    ) -> Tensor:
        return self._gated("silu_and_mul", input, out)

    def gelu_tanh_and_mul(
        self,
        input: Tensor,  # noqa: A002
        out: Tensor | None = None,
        enable_pdl: bool | None = None,
    ) -> Tensor:
        return self._gated("gelu_tanh_and_mul", input, out)

    def _gated(self, name: str, inputs: Tensor, out: Tensor | None) -> Tensor:
        self.calls.append(name)
        self._check_dtype(inputs, "input")
        expect(inputs.is_contiguous(), "input is not contiguous")
        expect(inputs.shape[-1] * inputs.dtype.itemsize % 16 == 0, "16 bytes")
        width = inputs.shape[-1] // 2
        result = inputs.new_empty((*inputs.shape[:-1], width)) if out is None else out

        def run() -> None:
            gate, up = inputs.float().chunk(2, dim=-1)
            is_silu = name == "silu_and_mul"
            active = F.silu(gate) if is_silu else F.gelu(gate, approximate="tanh")
            result.copy_(active * up)

        kernel(run)
        return result

    def _check_norm(self, inputs: Tensor, weight: Tensor) -> None:
        self._check_dtype(inputs, "input")
        expect(inputs.dim() == 2 and inputs.stride(-1) == 1, "rows that lie together")
        expect(weight.dtype == inputs.dtype, "weight is read as the input's dtype")
        expect(weight.shape == inputs.shape[1:], "one weight a column")

    def _check_dtype(self, tensor: Tensor, name: str) -> None:
        expect(tensor.dtype in self.dtypes, f"no kernel for {name} of {tensor.dtype}")

    def _check_head_dim(self, head_dim: int) -> None:
        is_known = self.head_dims is None or head_dim in self.head_dims
        expect(is_known, f"no kernel for heads of {head_dim}")


def _norm(inputs: Tensor, weight: Tensor, eps: float) -> Tensor:
    scale = inputs.square().mean(-1, keepdim=True).add(eps).rsqrt()
    return inputs * scale * weight.float()


class _Wrapper:
    """What both wrappers have: a plan, in memory of their own, that a run reads."""

    library: FakeFlashInfer
    is_graph: bool
    is_tensor_cores = True

    def adopt(self, library: FakeFlashInfer) -> None:
        self.library = library
        library.wrappers.append(self)

    def set_up(self, workspace: Tensor, layout: str, backend: str) -> None:
        expect(workspace.dtype == torch.uint8, "the workspace is uint8")
        expect(workspace.data_ptr() % 16 == 0, "the workspace is not aligned")
        expect(layout == "NHD", f"layout {layout}")
        expect(backend == "fa2", f"backend {backend}: its first choice would stick")
        self._plan_memory = torch.zeros(MAX_PLAN, dtype=torch.int32)
        self._options: dict[str, Any] = {}
        self.num_plans = 0

    def keep(
        self,
        *,
        kv_lens: list[int],
        qo_lens: list[int],
        q_data_type: Any,
        kv_data_type: Any,
        o_data_type: Any,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        **options: Any,
    ) -> None:
        """Check a plan, and keep it where kernels find it."""
        for name, dtype in (
            ("q_data_type", q_data_type),
            ("kv_data_type", kv_data_type),
            ("o_data_type", o_data_type),
        ):
            expect(dtype in self.library.dtypes, f"{name} is {dtype}")
        self.library._check_head_dim(head_dim)
        expect(num_qo_heads % num_kv_heads == 0, "query heads in groups")
        if not self.is_tensor_cores:
            group = num_qo_heads // num_kv_heads
            expect(group in (1, 2, 3, 4, 6, 8), f"no kernel for groups of {group}")
        expect(options["pos_encoding_mode"] == "NONE", "keys are rotated already")
        expect(not self.is_graph or not options.pop("disable_split_kv"), "in a graph")
        self._shape = (num_qo_heads, num_kv_heads, head_dim, page_size)
        self._options = {**options, "dtype": q_data_type}
        numbers = [len(kv_lens), *kv_lens, *qo_lens]
        self._plan_memory[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
        self.num_plans += 1

    def attend(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        out: Tensor | None,
        *,
        qo_indptr: Tensor | None,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        bits: Tensor | None = None,
        bits_indptr: Tensor | None = None,
        is_causal: bool = True,
        lse: Tensor | None = None,
    ) -> Tensor:
        keys, values = paged_kv_cache
        num_heads, num_kv_heads, head_dim, page_size = self._shape
        expect(q.dim() == 3 and q.stride(-1) == 1, "q is [nnz, heads, dim]")
        expect(
            q.shape[1:] == (num_heads, head_dim), f"planned other heads than {q.shape}"
        )
        expect(q.dtype == self._options["dtype"] == keys.dtype, "planned another dtype")
        for tensor in (keys, values):
            expect(tensor.is_contiguous(), "the cache of a layer is contiguous")
            expect(tensor.shape[1:] == (page_size, num_kv_heads, head_dim), "the cache")
        result = torch.empty_like(q) if out is None else out
        expect(result.shape == q.shape and result.dtype == q.dtype, "out is as q")
        expect(result.is_contiguous(), "out is contiguous")
        plan, options = self._plan_memory, self._options
        cap = options["logits_soft_cap"] or 0.0
        window, scale = options["window_left"], options["sm_scale"] or head_dim**-0.5

        def run() -> None:
            size = len(last_page_len)
            counts = (indptr[1:] - indptr[:-1] - 1).clamp(min=0) * page_size
            kv_lens = (counts + last_page_len).tolist()
            starts = list(range(size + 1)) if qo_indptr is None else qo_indptr.tolist()
            qo_lens = [b - a for a, b in pairwise(starts)]
            numbers = [size, *kv_lens, *qo_lens]
            expect(
                plan[: len(numbers)].tolist() == numbers, "the plan of another batch"
            )
            expect(len(q) == starts[-1], f"planned {starts[-1]} rows, got {len(q)}")
            for index in range(size):
                first, last = indptr[index : index + 2].tolist()
                pages = indices[first:last].long()
                expect(bool((pages < len(keys)).all()), "a page that is not there")
                expect(1 <= int(last_page_len[index]) <= page_size, "last_page_len")
                key = keys[pages].flatten(0, 1)[: kv_lens[index]].float()
                value = values[pages].flatten(0, 1)[: kv_lens[index]].float()
                own = q[starts[index] : starts[index + 1]].float()
                slots = torch.arange(len(key))
                last_slots = torch.arange(len(own))[:, None] + len(key) - len(own)
                is_seen = torch.ones(len(own), len(key), dtype=torch.bool)
                if bits is not None:
                    assert bits_indptr is not None
                    offset = torch.arange(is_seen.numel()) + 8 * int(bits_indptr[index])
                    expect(int(offset[-1]) < 8 * len(bits), "a mask beyond the bits")
                    is_seen = (
                        bits[offset // 8] >> (offset % 8).to(torch.uint8)
                    ) & 1 == 1
                    is_seen = is_seen.view(len(own), len(key))
                elif is_causal:
                    is_seen = slots <= last_slots
                if window >= 0:
                    is_seen = is_seen & (slots + window >= last_slots)
                group = num_heads // num_kv_heads
                key, value = (x.repeat_interleave(group, 1) for x in (key, value))
                scores = torch.einsum("nhd,shd->hns", own, key) * scale
                if cap > 0.0:
                    scores = cap * torch.tanh(scores / cap)
                scores = scores.masked_fill(~is_seen, -torch.inf)
                weights = scores.softmax(-1)
                if lse is not None:  # to base 2, as the library has it
                    sums = scores.logsumexp(-1).T / math.log(2)
                    lse[starts[index] : starts[index + 1]] = sums
                attended = torch.einsum("hns,shd->nhd", weights, value)
                result[starts[index] : starts[index + 1]] = attended.to(q.dtype)

        kernel(run)
        return result


class DecodeWrapper(_Wrapper):
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        use_tensor_cores: bool = False,
        paged_kv_indptr_buffer: Tensor | None = None,
        paged_kv_indices_buffer: Tensor | None = None,
        paged_kv_last_page_len_buffer: Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
    ) -> None:
        self.set_up(float_workspace_buffer, kv_layout, backend)
        self.is_graph, self.is_tensor_cores = use_cuda_graph, use_tensor_cores
        if use_cuda_graph:
            assert paged_kv_indptr_buffer is not None
            assert paged_kv_indices_buffer is not None
            assert paged_kv_last_page_len_buffer is not None
            self._size = len(paged_kv_last_page_len_buffer)
            check_ints(paged_kv_indptr_buffer, "indptr buffer", self._size + 1)
            self._indptr = paged_kv_indptr_buffer
            self._indices = paged_kv_indices_buffer
            self._last = paged_kv_last_page_len_buffer

    def plan(
        self,
        indptr: Tensor,
        indices: Tensor,
        last_page_len: Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim: int,
        page_size: int,
        *,
        pos_encoding_mode: str = "NONE",
        window_left: int = -1,
        window_right: int = 0,
        logits_soft_cap: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        data_type: Any = None,
        sm_scale: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        non_blocking: bool = True,
        block_tables: Tensor | None = None,
        seq_lens: Tensor | None = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
        q_len_per_req: int = 1,
    ) -> None:
        self.library.calls.append("decode.plan")
        size = len(last_page_len)
        check_host(indptr, "indptr", size + 1)
        check_host(last_page_len, "last_page_len", size)
        check_ints(indices, "indices", int(indptr[-1]))
        counts = (indptr[1:] - indptr[:-1] - 1).clamp(min=0) * page_size
        kv_lens = (counts + last_page_len).tolist()
        if seq_lens is not None:
            check_host(seq_lens, "seq_lens", size)
            expect(seq_lens.tolist() == kv_lens, "seq_lens are not those of the pages")
        if self.is_graph:
            expect(size == self._size, f"{size} requests in a graph of {self._size}")
            expect(
                len(indices) <= len(self._indices), "more pages than the buffer holds"
            )
            self._indptr.copy_(indptr)
            self._last.copy_(last_page_len)
            self._indices[: len(indices)].copy_(indices)
        else:
            self._indptr, self._indices = indptr.clone(), indices
            self._last = last_page_len.clone()
        self.keep(
            kv_lens=kv_lens,
            qo_lens=[1] * size,
            q_data_type=q_data_type,
            kv_data_type=q_data_type if kv_data_type is None else kv_data_type,
            o_data_type=q_data_type if o_data_type is None else o_data_type,
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            page_size=page_size,
            pos_encoding_mode=pos_encoding_mode,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
            disable_split_kv=disable_split_kv,
        )

    def run(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        *args: Any,
        q_scale: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: Tensor | None = None,
        q_len_per_req: int | None = None,
        skip_softmax_threshold_scale_factor: float | None = None,
        kv_cache_sf: Any = None,
    ) -> Tensor:
        self.library.calls.append("decode.run")
        expect(self.num_plans > 0, "run comes after plan")
        return self.attend(
            q,
            paged_kv_cache,
            out,
            qo_indptr=None,
            indptr=self._indptr,
            indices=self._indices,
            last_page_len=self._last,
        )


class PrefillWrapper(_Wrapper):
    def __init__(
        self,
        float_workspace_buffer: Tensor,
        kv_layout: str = "NHD",
        use_cuda_graph: bool = False,
        qo_indptr_buf: Tensor | None = None,
        paged_kv_indptr_buf: Tensor | None = None,
        paged_kv_indices_buf: Tensor | None = None,
        paged_kv_last_page_len_buf: Tensor | None = None,
        custom_mask_buf: Tensor | None = None,
        mask_indptr_buf: Tensor | None = None,
        backend: str = "auto",
        jit_args: list[Any] | None = None,
        jit_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.set_up(float_workspace_buffer, kv_layout, backend)
        expect(not use_cuda_graph, "no graph has prefills")
        self.is_graph = False
        self._custom_mask_buf: Tensor | None = None
        self._mask_indptr_buf: Tensor | None = None

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
        head_dim_vo: int | None = None,
        custom_mask: Tensor | None = None,
        packed_custom_mask: Tensor | None = None,
        causal: bool = False,
        pos_encoding_mode: str = "NONE",
        use_fp16_qk_reduction: bool = False,
        sm_scale: float | None = None,
        window_left: int = -1,
        logits_soft_cap: float | None = None,
        rope_scale: float | None = None,
        rope_theta: float | None = None,
        q_data_type: Any = "float16",
        kv_data_type: Any = None,
        o_data_type: Any = None,
        non_blocking: bool = True,
        prefix_len_ptr: Tensor | None = None,
        token_pos_in_items_ptr: Tensor | None = None,
        token_pos_in_items_len: int = 0,
        max_item_len_ptr: Tensor | None = None,
        seq_lens: Tensor | None = None,
        seq_lens_q: Tensor | None = None,
        block_tables: Tensor | None = None,
        max_token_per_sequence: int | None = None,
        max_sequence_kv: int | None = None,
        fixed_split_size: int | None = None,
        disable_split_kv: bool = False,
    ) -> None:
        is_masked = packed_custom_mask is not None
        self._kind = "prefill" if causal else "masked" if is_masked else "shared"
        self.library.calls.append(f"{self._kind}.plan")
        size = len(paged_kv_last_page_len)
        check_host(qo_indptr, "qo_indptr", size + 1)
        check_host(paged_kv_indptr, "paged_kv_indptr", size + 1)
        check_host(paged_kv_last_page_len, "paged_kv_last_page_len", size)
        check_ints(paged_kv_indices, "paged_kv_indices", int(paged_kv_indptr[-1]))
        expect(custom_mask is None, "a mask of bytes costs a kernel and a wait")
        qo_lens = qo_indptr[1:] - qo_indptr[:-1]
        counts = (paged_kv_indptr[1:] - paged_kv_indptr[:-1] - 1).clamp(min=0)
        kv_lens = counts * page_size + paged_kv_last_page_len
        if causal or packed_custom_mask is not None:
            expect(bool((kv_lens >= qo_lens).all()), "new keys are in the context")
        if seq_lens is not None:
            check_host(seq_lens, "seq_lens", size)
            expect(bool((seq_lens == kv_lens).all()), "seq_lens are not the pages'")
        self._custom_mask_buf = self._mask_indptr_buf = None
        if packed_custom_mask is not None:
            expect(packed_custom_mask.dtype == torch.uint8, "bits are uint8")
            expect(not causal, "a mask says itself what is causal")
            # As in the library: it counts in bits what the kernel reads as bytes.
            bits = torch.cumsum(qo_lens * kv_lens, 0).to(torch.int32)
            self._custom_mask_buf = packed_custom_mask
            self._mask_indptr_buf = torch.cat((bits.new_zeros(1), bits))
        else:
            expect(causal or bool((kv_lens > 0).all()), "an empty beginning")
        self._qo_indptr, self._indptr = qo_indptr.clone(), paged_kv_indptr.clone()
        self._indices, self._last = paged_kv_indices, paged_kv_last_page_len.clone()
        self._causal = causal
        self.keep(
            kv_lens=kv_lens.tolist(),
            qo_lens=qo_lens.tolist(),
            q_data_type=q_data_type,
            kv_data_type=q_data_type if kv_data_type is None else kv_data_type,
            o_data_type=q_data_type if o_data_type is None else o_data_type,
            num_qo_heads=num_qo_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim_qk,
            page_size=page_size,
            pos_encoding_mode=pos_encoding_mode,
            window_left=window_left,
            logits_soft_cap=logits_soft_cap,
            sm_scale=sm_scale,
        )

    def run(
        self,
        q: Tensor,
        paged_kv_cache: Any,
        *args: Any,
        q_scale: float | None = None,
        k_scale: float | None = None,
        v_scale: float | None = None,
        out: Tensor | None = None,
        lse: Tensor | None = None,
        return_lse: bool = False,
        enable_pdl: bool | None = None,
        window_left: int | None = None,
        sinks: Tensor | None = None,
        kv_cache_sf: Any = None,
        skip_softmax_threshold_scale_factor: float | None = None,
        use_fp16_softmax: bool | None = None,
        uses_spcompress: bool | None = None,
    ) -> Any:
        self.library.calls.append(f"{self._kind}.run")
        expect(self.num_plans > 0, "run comes after plan")
        if self._mask_indptr_buf is not None:
            check_ints(self._mask_indptr_buf, "mask_indptr", len(self._last) + 1)
        if return_lse and lse is None:
            lse = torch.full(q.shape[:2], torch.nan)
        result = self.attend(
            q,
            paged_kv_cache,
            out,
            lse=lse,
            qo_indptr=self._qo_indptr,
            indptr=self._indptr,
            indices=self._indices,
            last_page_len=self._last,
            bits=self._custom_mask_buf,
            bits_indptr=self._mask_indptr_buf,
            is_causal=self._causal,
        )
        return (result, lse) if return_lse else result

    run_return_lse = partialmethod(run, return_lse=True)
