"""Masks as bits, laid out as FlashInfer's kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["PackedMasks", "is_causal", "pack_masks"]


@dataclass(frozen=True, slots=True)
class PackedMasks:
    """The masks of some requests, one after the other.

    Attributes:
        bits: ``[num_bytes]`` uint8, the lowest bit of a byte first. Bit ``i * kv_len + s`` of a
            request says whether its new token i sees slot s; rows are not padded, but each
            request begins with a byte of its own.
        byte_indptr: ``[R + 1]`` int32 into the bytes.
        blind_rows: int64, the new tokens of the group that see nothing. A softmax over nothing
            is up to the kernel; ours is zero.
    """

    bits: NDArray[np.uint8]
    byte_indptr: NDArray[np.int32]
    blind_rows: NDArray[np.int64]


def pack_masks(
    masks: Sequence[NDArray[np.bool_]], window: int | None = None
) -> PackedMasks:
    """Pack the masks of requests, narrowed to a window.

    Args:
        masks: At least one, each ``[num_tokens, kv_len]`` bool; token i is in slot
            ``kv_len - num_tokens + i``.
        window: A token sees its own slot and so many before it, less one; None for all.
    """
    parts: list[NDArray[np.uint8]] = []
    blind: list[NDArray[np.int64]] = []
    starts, num_rows = [0], 0
    for whole in masks:
        mask = whole if window is None else whole & _band(whole.shape, window)
        parts.append(np.packbits(mask.reshape(-1), bitorder="little"))
        starts.append(starts[-1] + len(parts[-1]))
        blind.append(np.flatnonzero(~mask.any(axis=1)) + num_rows)
        num_rows += len(mask)
    assert starts[-1] < 1 << 31, "masks of more than 2 GiB of bits: 16 GiB as they came"
    return PackedMasks(
        bits=np.concatenate(parts),
        byte_indptr=np.array(starts, np.int32),
        blind_rows=np.concatenate(blind),
    )


def is_causal(mask: NDArray[np.bool_]) -> bool:
    """Say whether a mask hides nothing but what comes later, so that none is needed."""
    num_tokens, kv_len = mask.shape
    if num_tokens == 1:
        return bool(mask.all())
    own = kv_len - num_tokens
    if not mask[
        0, : own + 1
    ].all():  # most masks differ here: the rest is not looked at
        return False
    return bool((mask == np.tri(num_tokens, kv_len, own, dtype=np.bool_)).all())


def _band(shape: tuple[int, ...], window: int) -> NDArray[np.bool_]:
    num_tokens, kv_len = shape
    first = kv_len - num_tokens - window
    return ~np.tri(num_tokens, kv_len, first, dtype=np.bool_)
