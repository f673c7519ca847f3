"""Paged attention in readable torch on the CPU: gather, then scaled dot-product attention.

It is the reference for every other backend. The group of query heads that share a key head is
folded into the query length, because ``enable_gqa`` is 2 to 5 times slower on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch, ForwardRequest
    from pie_trio.inference.kv_cache import KvCache
    from pie_trio.inference.metadata import BatchMetadata

__all__ = ["PagedAttention", "plan_attention", "to_tensor"]

# Decoding requests share one padded call while their keys fit the cache of a core (beyond
# that, one call each is up to three times faster) and while little of it is padding.
_GROUP_KEY_BYTES = 2 << 20
_GROUP_MIN_FILL = 0.75


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Requests with one new token each, padded to the longest context.

    Attributes:
        rows: ``[B]`` int64, their new tokens.
        slots: ``[B * S]`` int64, their contexts.
        bias: ``[B, 1, 1, S]``, 0 or -inf; None if all of them attend to all.
    """

    rows: Tensor
    slots: Tensor
    bias: Tensor | None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return ``[B, num_heads * head_dim]`` for ``query`` ``[T, num_heads, head_dim]``."""
        size, num_kv_heads, head_dim = self.rows.shape[0], keys.shape[1], keys.shape[2]
        folded = query[self.rows].view(
            size, num_kv_heads, -1, head_dim
        )  # [B, KV, G, D]
        shape = (size, -1, num_kv_heads, head_dim)
        attended = F.scaled_dot_product_attention(
            folded,
            keys.index_select(0, self.slots)
            .view(shape)
            .transpose(1, 2),  # [B, KV, S, D]
            values.index_select(0, self.slots).view(shape).transpose(1, 2),
            attn_mask=self.bias,
        )
        return attended.reshape(size, -1)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One request with several new tokens.

    Attributes:
        rows: ``[n]`` int64, its new tokens; they follow each other.
        slots: ``[S]`` int64, its context.
        bias: ``[n, S]``, 0 or -inf; None where n is S and token i attends to slots 0 to i.
    """

    rows: Tensor
    slots: Tensor
    bias: Tensor | None

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return ``[n, num_heads * head_dim]`` for ``query`` ``[T, num_heads, head_dim]``."""
        size, num_kv_heads, head_dim = self.rows.shape[0], keys.shape[1], keys.shape[2]
        grouped = query[self.rows].view(
            size, num_kv_heads, -1, head_dim
        )  # [n, KV, G, D]
        grouped = grouped.permute(1, 2, 0, 3)  # [KV, G, n, D]
        shape = (num_kv_heads, grouped.shape[1], self.slots.shape[0], head_dim)
        key = keys.index_select(0, self.slots).transpose(0, 1)[:, None]  # [KV, 1, S, D]
        value = values.index_select(0, self.slots).transpose(0, 1)[:, None]
        attended = F.scaled_dot_product_attention(
            grouped,
            key.expand(shape),
            value.expand(shape),
            attn_mask=self.bias,
            is_causal=self.bias is None,
        )
        return attended.permute(2, 0, 1, 3).reshape(size, -1)


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """The attention of one batch over the cache; an :class:`~..models.llama.Attention`."""

    kv_cache: KvCache
    write_slots: Tensor
    parts: tuple[_DecodeGroup | _Chunk, ...]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new keys and values, then attend: see :class:`Attention`."""
        keys, values = self.kv_cache.layer(layer)  # [num_slots, KV, D]
        keys.index_copy_(0, self.write_slots, key)
        values.index_copy_(0, self.write_slots, value)
        if len(self.parts) == 1:  # then its rows are all rows, in order
            return self.parts[0].attend(query, keys, values)
        attended = query.new_empty(query.shape[0], query.shape[1] * query.shape[2])
        for part in self.parts:
            attended[part.rows] = part.attend(query, keys, values)
        return attended


def plan_attention(
    batch: Batch, metadata: BatchMetadata, kv_cache: KvCache
) -> PagedAttention:
    """Prepare the attention of a batch once for all layers."""
    dtype = kv_cache.pages.dtype
    parts: list[_DecodeGroup | _Chunk] = []
    if len(metadata.token_ids) == metadata.num_requests:
        decodes = np.arange(metadata.num_requests)
    else:
        is_decode = metadata.query_lens == 1
        decodes = np.flatnonzero(is_decode)
        parts += [
            _plan_chunk(request, batch.forwards[request], metadata, dtype)
            for request in np.flatnonzero(~is_decode).tolist()
        ]
    max_slots = max(1, _GROUP_KEY_BYTES // kv_cache.key_bytes)
    parts += [
        _plan_decode(group, batch, metadata, dtype)
        for group in _group_by_length(decodes, metadata.kv_lens, max_slots)
    ]
    write_slots = to_tensor(metadata.write_slots)
    return PagedAttention(kv_cache, write_slots, tuple(parts))


def to_tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of ``array``; twice as fast as ``torch.as_tensor``."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType] -- torch


def _group_by_length(
    requests: NDArray[np.int64], all_kv_lens: NDArray[np.int32], max_slots: int
) -> list[NDArray[np.int64]]:
    """Split requests into groups of similar length, each in the order of the batch."""
    if len(requests) < 2:
        return [requests] if len(requests) else []
    kv_lens = all_kv_lens[requests]
    order = (-kv_lens).argsort(kind="stable")
    groups: list[NDArray[np.int64]] = []
    start = longest = used = 0
    lengths = kv_lens[order].tolist()
    for place, kv_len in enumerate(lengths):
        longest = longest or kv_len
        size = (place - start + 1) * longest
        used += kv_len
        if place > start and (size > max_slots or used < _GROUP_MIN_FILL * size):
            groups.append(order[start:place])
            start, longest, used = place, kv_len, kv_len
    groups.append(order[start:])
    return [np.sort(requests[group]) for group in groups]


def _plan_decode(
    requests: NDArray[np.int64],
    batch: Batch,
    metadata: BatchMetadata,
    dtype: torch.dtype,
) -> _DecodeGroup:
    slots = metadata.context_slots(requests)  # [B, S]
    ids: list[int] = requests.tolist()
    all_masks = [batch.forwards[request].mask for request in ids]
    masks = [(row, mask) for row, mask in enumerate(all_masks) if mask is not None]
    kv_lens = metadata.kv_lens[requests]
    bias = None
    if masks or min(kv_lens.tolist()) < slots.shape[1]:
        is_seen = np.arange(slots.shape[1], dtype=np.int32) < kv_lens[:, None]  # [B, S]
        for row, mask in masks:
            is_seen[row, : mask.shape[1]] &= mask[0]
        bias = _bias(is_seen, dtype)[:, None, None]
    rows = metadata.qo_indptr[requests].astype(np.int64)
    return _DecodeGroup(
        rows=to_tensor(rows),
        slots=to_tensor(slots.reshape(-1)),
        bias=bias,
    )


def _plan_chunk(
    index: int, request: ForwardRequest, metadata: BatchMetadata, dtype: torch.dtype
) -> _Chunk:
    num_tokens, kv_len = len(request.token_ids), request.kv_len
    if request.mask is not None:
        bias = _bias(request.mask, dtype)
    elif num_tokens == kv_len:
        bias = None
    else:
        is_seen = np.tri(num_tokens, kv_len, kv_len - num_tokens, dtype=np.bool_)
        bias = _bias(is_seen, dtype)
    start = int(metadata.qo_indptr[index])
    return _Chunk(
        rows=torch.arange(start, start + num_tokens),
        slots=torch.as_tensor(metadata.context_slots(np.array([index]))[0]),
        bias=bias,
    )


def _bias(is_seen: NDArray[np.bool_], dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores: a float mask is faster than a boolean one."""
    bias = np.zeros(is_seen.shape, np.float32)
    bias[~is_seen] = -np.inf
    return to_tensor(bias).to(dtype)
