"""Draws tokens on the device, as :mod:`pie_trio.inference.sampler` does on the host.

FlashInfer has samplers of its own, which take other random numbers: the same seed would give
other tokens than on a CPU. Here a row is drawn at the same uniform number, from the same
filters; the weights may differ in their last bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

from pie_trio.inference.filters import has_late_filter
from pie_trio.inference.sampler import uniforms

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import SamplerSpec

__all__ = [
    "Draws",
    "best_tokens",
    "draw",
    "is_for_host",
    "is_settled_on_device",
    "plan_draws",
]

_NUM_CANDIDATES = 256
_BLOCK_SIZE = 64


@dataclass(frozen=True, slots=True)
class Draws:
    """What a batch draws, on the host.

    Attributes:
        plain: Rows at a temperature, without filters.
        filtered: Rows with filters, too.
        left: Rows that are drawn on the host; the device finds the likeliest token there.
        heads: ``[num_rows]`` int64, the row of logits of each. Rows with masks have rows of
            logits of their own, in order, behind all others.
        num_masked: How many these are.
        num_candidates: So many of the likeliest tokens are looked at for filtered rows.
        arrays: For the device.
    """

    plain: list[int]
    filtered: list[int]
    left: list[int]
    heads: NDArray[np.int64]
    num_masked: int
    num_candidates: int
    arrays: Mapping[str, NDArray[Any]]


def plan_draws(
    samplers: Sequence[SamplerSpec],
    positions: NDArray[np.int32],
    head_index: NDArray[np.int64],
    *,
    num_heads: int = 0,
    masks: Mapping[int, NDArray[np.uint8]] | None = None,
    on_host: Collection[int] = (),
) -> Draws | None:
    """Prepare draws; None where all rows are for the host.

    Args:
        samplers: ``[num_rows]``.
        positions: ``[num_rows]`` int32.
        head_index: ``[num_rows]`` int64, the row of logits of each.
        num_heads: Rows of logits; looked at where there are masks.
        masks: Of some rows, ``[num_bytes]`` each: see :func:`~.token_masks.as_bytes`.
        on_host: Rows that are drawn there, besides those with late filters.
    """
    plain: list[int] = []
    filtered: list[int] = []
    left: list[int] = []
    for row, spec in enumerate(samplers):
        if row in on_host or is_for_host(spec):
            left.append(row)
        elif spec.temperature > 0.0:
            is_filtered = spec.top_k > 0 or spec.top_p < 1.0 or spec.min_p > 0.0
            (filtered if is_filtered else plain).append(row)
    if len(left) == len(samplers):
        return None
    arrays: dict[str, NDArray[Any]] = {}
    if masks:
        masked = [*masks]
        arrays["masked_heads"] = head_index[masked]
        arrays["token_masks"] = np.stack([*masks.values()])
        head_index = head_index.copy()
        head_index[masked] = np.arange(num_heads, num_heads + len(masked))
    arrays["head_index"] = head_index
    for name, rows in (("plain", plain), ("filtered", filtered)):
        if rows:
            specs = [samplers[row] for row in rows]
            scales = [1.0 / max(spec.temperature, 1e-30) for spec in specs]
            arrays[f"{name}_rows"] = np.array(rows, np.int64)
            arrays[f"{name}_heads"] = head_index[rows]
            arrays[f"{name}_scales"] = np.array(scales, np.float32)
            seeds = [spec.seed for spec in specs]
            arrays[f"{name}_points"] = uniforms(seeds, positions[rows])
    specs = [samplers[row] for row in filtered]
    if specs:
        arrays["top_k"] = np.array([spec.top_k for spec in specs], np.int64)
        arrays["top_p"] = np.array([spec.top_p for spec in specs], np.float64)
        arrays["min_p"] = np.array([spec.min_p for spec in specs], np.float32)
    counts = [spec.top_k + 1 if spec.top_k else _NUM_CANDIDATES for spec in specs]
    num_candidates = max(counts, default=0)
    num_masked = len(masks or ())
    return Draws(plain, filtered, left, head_index, num_masked, num_candidates, arrays)


def is_for_host(spec: SamplerSpec) -> bool:
    """Say whether a sampler has filters that the device does not know."""
    return spec.temperature > 0.0 and has_late_filter(spec)


def is_settled_on_device(spec: SamplerSpec) -> bool:
    """Say whether the host never has to look at what the device has drawn.

    With ``top_k`` one candidate more is looked at than may pass; other filters may let more pass
    than are looked at.
    """
    if spec.temperature <= 0.0:
        return True
    is_filtered = spec.top_p < 1.0 or spec.min_p > 0.0
    return not has_late_filter(spec) and (spec.top_k > 0 or not is_filtered)


def best_tokens(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``[R]`` int64, the likeliest tokens, of equal ones the lowest; and their logits.

    The logits are NaN where a row holds NaN.
    """
    peaks = logits.amax(dim=1)
    keys = _keys(logits).amax(dim=1)
    return _ids_of(keys, logits.shape[1]), peaks


def draw(
    logits: Tensor, best: Tensor, draws: Draws, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Draw a token for each row.

    Args:
        logits: ``[num_heads, vocab_size]`` float32, those with masks at the end.
        best: ``[num_heads]`` int64.
        draws: The plan.
        tensors: Its arrays on the device.

    Returns:
        ``[num_rows]`` int64; and ``[len(draws.filtered)]`` bool, False where the filters let
        more pass than were looked at, so that the host has to draw.
    """
    token_ids = best.index_select(0, tensors["head_index"])
    if draws.plain:
        own = logits.index_select(0, tensors["plain_heads"])
        weights = _weights(own, tensors["plain_scales"])
        chosen = _invert(weights, tensors["plain_points"])
        token_ids.index_copy_(0, tensors["plain_rows"], chosen)
    is_settled = torch.ones(0, dtype=torch.bool, device=logits.device)
    if draws.filtered:
        own = logits.index_select(0, tensors["filtered_heads"])
        chosen, is_settled = _draw_filtered(own, draws.num_candidates, tensors)
        token_ids.index_copy_(0, tensors["filtered_rows"], chosen)
    return token_ids, is_settled


def _draw_filtered(
    logits: Tensor, num_candidates: int, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    vocab_size = logits.shape[1]
    count = min(num_candidates, vocab_size)
    scales = tensors["filtered_scales"]
    ids = _ids_of(_keys(logits).topk(count, dim=1).values, vocab_size)  # [R, C]
    candidates = _weights(logits.gather(1, ids), scales)  # descending from 1
    top_k, top_p, min_p = tensors["top_k"], tensors["top_p"], tensors["min_p"]
    sums = candidates.double().cumsum(dim=1)
    last = torch.where(top_k > 0, top_k, count).clamp(max=count)
    total = _weights(logits, scales).sum(dim=1, dtype=torch.float64)
    in_top_k = sums.gather(1, last[:, None] - 1)[:, 0]
    mass = torch.where(top_k > 0, in_top_k, total)
    num_nuclear = (sums < (top_p * mass)[:, None]).sum(dim=1) + 1
    num_nuclear = torch.where(top_p >= 1.0, count, num_nuclear)
    num_likely = (candidates >= min_p[:, None]).sum(dim=1)
    num_kept = torch.minimum(torch.minimum(last, num_nuclear), num_likely)
    is_settled = (num_kept < count) | (count == vocab_size)
    is_kept = torch.arange(count, device=logits.device) < num_kept[:, None]
    # Running sums go in the order of ids, as on the host.
    places = torch.where(is_kept, ids, vocab_size)
    places, order = places.sort(dim=1)
    chosen = _invert(
        (candidates * is_kept).gather(1, order), tensors["filtered_points"]
    )
    return places.gather(1, chosen[:, None])[:, 0], is_settled


def _keys(logits: Tensor) -> Tensor:
    """Return int64 numbers that are ordered as logits, and equal logits by falling id.

    Which of equal logits a GPU finds first is up to chance, and in bfloat16 many are equal.
    """
    bits = (logits + 0.0).view(torch.int32)  # -0.0 is 0.0 now
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    size = logits.shape[1]
    return (ordered << 32) + torch.arange(size - 1, -1, -1, device=logits.device)


def _ids_of(keys: Tensor, vocab_size: int) -> Tensor:
    return vocab_size - 1 - (keys & 0xFFFFFFFF)


def _weights(logits: Tensor, scales: Tensor) -> Tensor:
    shifted = logits - logits.amax(dim=1, keepdim=True)
    return shifted.mul_(scales[:, None]).exp_()


def _invert(weights: Tensor, points: Tensor) -> Tensor:
    """Return ``[R]`` int64, where the running sum of a row passes ``point * total``."""
    num_rows, num_columns = weights.shape
    weights = F.pad(weights, (0, -num_columns % _BLOCK_SIZE))
    blocks = weights.view(num_rows, -1, _BLOCK_SIZE).double()
    sums = blocks.sum(dim=2).cumsum(dim=1)
    targets = points * sums[:, -1]
    chosen = _first_beyond(sums, targets)
    before = F.pad(sums, (1, 0)).gather(1, chosen[:, None])[:, 0]
    inside = blocks[torch.arange(num_rows, device=weights.device), chosen].cumsum(dim=1)
    return chosen * _BLOCK_SIZE + _first_beyond(inside, targets - before)


def _first_beyond(sums: Tensor, targets: Tensor) -> Tensor:
    """As on the host: where rounding carries the target up to the last sum, the last growth."""
    is_before_last = (sums < sums[:, -1:]).sum(dim=1)
    return torch.minimum((sums <= targets[:, None]).sum(dim=1), is_before_last)
