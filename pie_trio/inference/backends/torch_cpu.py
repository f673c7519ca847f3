"""Paged attention in readable torch on the CPU: gather, then scaled dot-product attention.

It is the reference for every other backend. The group of query heads that share a key head is
folded into the query length, because ``enable_gqa`` is 2 to 5 times slower on a CPU. Layers
with a window gather only what lies inside of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_trio.inference.backends.dot_product import attend

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch, ForwardRequest
    from pie_trio.inference.kv_cache import KvCache
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import AttentionConfig

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
        slots: ``[B * S]`` int64, what of their contexts lies in the window.
        bias: ``[B, 1, 1, S]``, 0 or -inf; None if all of them attend to all.
    """

    rows: Tensor
    slots: Tensor
    bias: Tensor | None

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, config: AttentionConfig
    ) -> Tensor:
        """Return ``[B, num_heads * head_dim]`` for ``query`` ``[T, num_heads, head_dim]``."""
        size, num_kv_heads, head_dim = self.rows.shape[0], keys.shape[1], keys.shape[2]
        folded = query[self.rows].view(
            size, num_kv_heads, -1, head_dim
        )  # [B, KV, G, D]
        shape = (size, -1, num_kv_heads, head_dim)
        attended = attend(
            folded,
            keys.index_select(0, self.slots)
            .view(shape)
            .transpose(1, 2),  # [B, KV, S, D]
            values.index_select(0, self.slots).view(shape).transpose(1, 2),
            self.bias,
            config,
        )
        return attended.reshape(size, -1)


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One request with several new tokens.

    Attributes:
        rows: ``[n]`` int64, its new tokens; they follow each other.
        slots: ``[S]`` int64, what of its context some token's window holds.
        bias: ``[n, S]``, 0 or -inf; None where n is S and token i attends to slots 0 to i.
    """

    rows: Tensor
    slots: Tensor
    bias: Tensor | None

    def attend(
        self, query: Tensor, keys: Tensor, values: Tensor, config: AttentionConfig
    ) -> Tensor:
        """Return ``[n, num_heads * head_dim]`` for ``query`` ``[T, num_heads, head_dim]``."""
        size, num_kv_heads, head_dim = self.rows.shape[0], keys.shape[1], keys.shape[2]
        grouped = query[self.rows].view(
            size, num_kv_heads, -1, head_dim
        )  # [n, KV, G, D]
        grouped = grouped.permute(1, 2, 0, 3)  # [KV, G, n, D]
        shape = (num_kv_heads, grouped.shape[1], self.slots.shape[0], head_dim)
        key = keys.index_select(0, self.slots).transpose(0, 1)[:, None]  # [KV, 1, S, D]
        value = values.index_select(0, self.slots).transpose(0, 1)[:, None]
        attended = attend(
            grouped,
            key.expand(shape),
            value.expand(shape),
            self.bias,
            config,
            is_causal=self.bias is None,
        )
        return attended.permute(2, 0, 1, 3).reshape(size, -1)


@dataclass(frozen=True, slots=True)
class PagedAttention:
    """The attention of one batch over the cache; an :class:`~..models.decoder.Attention`.

    Attributes:
        parts: For each window of the configuration, who attends to what.
    """

    kv_cache: KvCache
    config: AttentionConfig
    write_slots: Tensor
    parts: tuple[_Parts, ...]

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the new keys and values, then attend: see :class:`Attention`."""
        keys, values = self.kv_cache.layer(layer)  # [num_slots, KV, D]
        keys.index_copy_(0, self.write_slots, key)
        values.index_copy_(0, self.write_slots, value)
        parts = self.parts[self.config.window_of_layer[layer]]
        if len(parts) == 1:  # then its rows are all rows, in order
            return parts[0].attend(query, keys, values, self.config)
        attended = query.new_empty(query.shape[0], query.shape[1] * query.shape[2])
        for part in parts:
            attended[part.rows] = part.attend(query, keys, values, self.config)
        return attended


_Parts = tuple[_DecodeGroup | _Chunk, ...]


def plan_attention(
    batch: Batch,
    metadata: BatchMetadata,
    kv_cache: KvCache,
    config: AttentionConfig,
) -> PagedAttention:
    """Prepare the attention of a batch once for all layers.

    Windows that are wider than every context of the batch are planned as one, without a window.
    """
    write_slots = to_tensor(metadata.write_slots)
    if config.windows == (None,):
        parts = (_plan_parts(batch, metadata, kv_cache, config, None),)
        return PagedAttention(kv_cache, config, write_slots, parts)
    longest = int(metadata.kv_lens.max())
    plans: dict[int | None, _Parts] = {}
    for window in config.windows:
        tight = window if window is not None and window < longest else None
        if tight not in plans:
            plans[tight] = _plan_parts(batch, metadata, kv_cache, config, tight)
        plans[window] = plans[tight]
    of_windows = tuple(plans[window] for window in config.windows)
    return PagedAttention(kv_cache, config, write_slots, of_windows)


def to_tensor(array: NDArray[Any]) -> Tensor:
    """Return a tensor on the memory of ``array``; twice as fast as ``torch.as_tensor``."""
    return torch.from_numpy(array)  # pyright: ignore[reportUnknownMemberType] -- torch


def _plan_parts(
    batch: Batch,
    metadata: BatchMetadata,
    kv_cache: KvCache,
    config: AttentionConfig,
    window: int | None,
) -> _Parts:
    dtype = kv_cache.pages.dtype
    parts: list[_DecodeGroup | _Chunk] = []
    if len(metadata.token_ids) == metadata.num_requests:
        decodes = np.arange(metadata.num_requests)
    else:
        is_decode = metadata.query_lens == 1
        decodes = np.flatnonzero(is_decode)
        parts += [
            _plan_chunk(
                request, batch.forwards[request], metadata, dtype, config, window
            )
            for request in np.flatnonzero(~is_decode).tolist()
        ]
    max_slots = max(1, _GROUP_KEY_BYTES // kv_cache.key_bytes)
    lengths = metadata.kv_lens if window is None else metadata.kv_lens.clip(max=window)
    parts += [
        _plan_decode(group, batch, metadata, dtype, window)
        for group in _group_by_length(decodes, lengths, max_slots)
    ]
    return tuple(parts)


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
    window: int | None,
) -> _DecodeGroup:
    slots = metadata.context_slots(requests)  # [B, S]
    lengths = metadata.kv_lens[requests]
    ids: list[int] = requests.tolist()
    all_masks = [batch.forwards[request].mask for request in ids]
    masks = [(row, mask[0]) for row, mask in enumerate(all_masks) if mask is not None]
    if window is not None:
        slots, lengths = _last_slots(slots, lengths, window)
        masks = [(row, mask[-window:]) for row, mask in masks]
    bias = None
    if masks or min(lengths.tolist()) < slots.shape[1]:
        is_seen = np.arange(slots.shape[1], dtype=np.int32) < lengths[:, None]  # [B, S]
        for row, mask in masks:
            is_seen[row, : len(mask)] &= mask
        bias = _bias(is_seen, dtype)[:, None, None]
    rows = metadata.qo_indptr[requests].astype(np.int64)
    return _DecodeGroup(
        rows=to_tensor(rows),
        slots=to_tensor(slots.reshape(-1)),
        bias=bias,
    )


def _last_slots(
    slots: NDArray[np.int64], lengths: NDArray[np.int32], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the last slots of each context, padded with the first of them, and how many."""
    kept = lengths.clip(max=window)
    columns = np.arange(int(kept.max()))
    columns = np.where(columns < kept[:, None], columns, 0)  # [B, window at most]
    return np.take_along_axis(slots, columns + (lengths - kept)[:, None], axis=1), kept


def _plan_chunk(
    index: int,
    request: ForwardRequest,
    metadata: BatchMetadata,
    dtype: torch.dtype,
    config: AttentionConfig,
    window: int | None,
) -> _Chunk:
    num_tokens, kv_len = len(request.token_ids), request.kv_len
    # What the window of the first new token holds, and all after.
    first = 0 if window is None else max(0, kv_len - num_tokens + 1 - window)
    start, own = int(metadata.qo_indptr[index]), kv_len - num_tokens - first
    shape = (num_tokens, kv_len - first)
    is_causal = window is None and num_tokens == kv_len
    if request.mask is not None:
        is_seen = request.mask[:, first:]
    elif is_causal and config.softcap is None:
        is_seen = None
    else:
        is_seen = np.tri(*shape, own, dtype=np.bool_)
    if is_seen is not None and window is not None:
        is_seen = is_seen & ~np.tri(*shape, own - window, dtype=np.bool_)
    return _Chunk(
        rows=torch.arange(start, start + num_tokens),
        slots=torch.as_tensor(metadata.context_slots(np.array([index]))[0, first:]),
        bias=None if is_seen is None else _bias(is_seen, dtype),
    )


def _bias(is_seen: NDArray[np.bool_], dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores: a float mask is faster than a boolean one."""
    bias = np.zeros(is_seen.shape, np.float32)
    bias[~is_seen] = -np.inf
    return to_tensor(bias).to(dtype)
