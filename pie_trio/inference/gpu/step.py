"""One step on the GPU: what goes there, what comes back, and nothing in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pie_trio.inference.gpu.sampling import best_tokens, draw, plan_draws
from pie_trio.inference.outputs import Computed
from pie_trio.inference.sampler import sample

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.gpu.cache import DeviceKvCache
    from pie_trio.inference.gpu.graphs import DecodeGraphs
    from pie_trio.inference.gpu.kernels import FlashInferKernels
    from pie_trio.inference.gpu.sampling import Draws
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.outputs import OutputPlan

__all__ = ["GpuStep"]


@dataclass(frozen=True, slots=True)
class _Work:
    """A step: what was asked for, and the arrays of it that are on the device."""

    batch: Batch
    metadata: BatchMetadata
    plan: OutputPlan
    model: Decoder
    kv_cache: DeviceKvCache
    embeds: Tensor
    tensors: dict[str, Tensor]


class GpuStep:
    """Computes steps; a :class:`~..step.Compute`.

    Attributes:
        num_replays: Steps that were a graph's.
    """

    def __init__(self, kernels: FlashInferKernels, graphs: DecodeGraphs) -> None:
        """Use kernels and the graphs that were captured with them."""
        self._kernels, self.graphs = kernels, graphs
        self.num_replays = 0

    def __call__(
        self,
        batch: Batch,
        metadata: BatchMetadata,
        plan: OutputPlan,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        /,
    ) -> Computed:
        """See :class:`~..step.Compute`."""
        draws = None
        if plan.is_sampling:
            draws = plan_draws(
                plan.samplers(), plan.state_positions[plan.rows], plan.head_index
            )
        cache = cast("DeviceKvCache", kv_cache)  # what the kernels allocated
        arrays = _arrays(plan)
        if draws is not None:
            arrays |= draws.arrays
        states: Tensor | None = None
        is_adapted = any(forward.adapter for forward in batch.forwards)
        if batch.forwards and not is_adapted:
            states = self.graphs.run(batch, metadata)
            self.num_replays += states is not None
        if states is not None or not batch.forwards:
            tensors = self._kernels.uploader.upload(arrays)
        else:
            states, tensors = self._eager(batch, metadata, model, cache, embeds, arrays)
        if batch.projections or states is None:
            stored = embeds.index_select(0, tensors["project_slots"])
            states = stored if states is None else torch.cat((states, stored))
        work = _Work(batch, metadata, plan, model, cache, embeds, tensors)
        if draws is not None and plan.head_rows.size:
            return _drawn(work, states, draws)
        return _read(work, states)

    def _eager(
        self,
        batch: Batch,
        metadata: BatchMetadata,
        model: Decoder,
        kv_cache: DeviceKvCache,
        embeds: Tensor,
        arrays: dict[str, NDArray[Any]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the layers kernel by kernel; everything goes to the device in one copy."""
        planner, attention = self._kernels.planner, model.config.attention
        prepared = planner.prepare(batch, metadata, attention)
        tensors = self._kernels.uploader.upload(
            {
                **arrays,
                **prepared.arrays,
                "token_ids": metadata.token_ids,
                "positions": metadata.positions,
                "embed_rows": metadata.embed_rows,
                "embed_slots": metadata.embed_slots,
            }
        )
        hidden = model.embed(tensors["token_ids"])
        if metadata.embed_rows.size:
            stored = embeds.index_select(0, tensors["embed_slots"])
            hidden.index_copy_(0, tensors["embed_rows"], stored)
        planned = planner.plan(prepared, tensors, kv_cache, attention)
        return model.forward(hidden, tensors["positions"], planned), tensors


def _arrays(plan: OutputPlan) -> dict[str, NDArray[Any]]:
    return {
        "project_slots": plan.project_slots,
        "head_rows": plan.head_rows,
        "hidden_rows": plan.hidden_rows,
        "store_rows": plan.store_rows,
        "store_slots": plan.store_slots.astype(np.int64),
    }


def _logits(work: _Work, states: Tensor) -> Tensor:
    if not work.plan.is_every_state:
        states = states.index_select(0, work.tensors["head_rows"])
    return work.model.logits(states)


def _drawn(work: _Work, states: Tensor, draws: Draws) -> Computed:
    """Sample on the device; what comes back is one vector of integers."""
    plan = work.plan
    logits = _logits(work, states)
    best, peaks = best_tokens(logits)
    # A row that is no numbers is drawn from zeros; its request fails anyway.
    is_bad = ~peaks.isfinite()
    logits = logits.masked_fill_(is_bad[:, None], 0.0)
    token_ids, is_settled = draw(logits, best, draws, work.tensors)
    is_broken = ~states.isfinite().all(dim=1)
    parts = (token_ids, is_bad, is_broken, is_settled)
    found = torch.cat([part.int() for part in parts]).cpu().numpy()
    sizes = np.cumsum([part.shape[0] for part in parts])[:-1]
    ids, bad, broken_states, settled = np.split(found, sizes)
    broken = _find_broken(work, broken_states)
    broken |= plan.requests_of_states(plan.head_rows[bad > 0].tolist())
    ids = np.where(bad[plan.head_index] > 0, 0, ids).astype(np.int32)
    if not settled.all():
        rows = np.array(draws.filtered)[settled == 0]
        _draw_on_host(plan, logits, rows, ids)
    no_logits = np.empty((0, work.model.config.vocab_size), np.float32)
    no_hidden = np.empty((0, work.model.config.hidden_size), np.float32)
    return Computed(no_logits, no_hidden, broken, ids)


def _draw_on_host(
    plan: OutputPlan,
    logits: Tensor,
    rows: NDArray[np.int64],
    token_ids: NDArray[np.int32],
) -> None:
    """Draw the rows whose filters let more tokens pass than the device has looked at."""
    own = logits[torch.as_tensor(plan.head_index[rows], device=logits.device)]
    samplers = plan.samplers()
    places: list[int] = rows.tolist()
    token_ids[rows] = sample(
        own.cpu().numpy(),
        [samplers[row] for row in places],
        plan.state_positions[plan.rows[rows]],
    )


def _read(work: _Work, states: Tensor) -> Computed:
    """Store what is to be stored, and fetch the logits and hidden states of the plan."""
    plan, tensors, config = work.plan, work.tensors, work.model.config
    logits = np.empty((0, config.vocab_size), np.float32)
    hidden = np.empty((0, config.hidden_size), np.float32)
    is_broken = ~states.isfinite().all(dim=1)
    if plan.store_rows.size:
        rows = states.index_select(0, tensors["store_rows"])
        work.embeds.index_copy_(0, tensors["store_slots"], rows)
    if plan.hidden_rows.size:
        hidden = states.index_select(0, tensors["hidden_rows"]).float().cpu().numpy()
    if plan.head_rows.size:
        logits = _logits(work, states).cpu().numpy()
    return Computed(logits, hidden, _find_broken(work, is_broken.cpu().numpy()))


def _find_broken(work: _Work, is_broken: NDArray[Any]) -> set[int]:
    """Return the requests of states that are not finite, and clear what they wrote."""
    states = np.flatnonzero(is_broken)
    if not len(states):
        return set()
    plan, metadata = work.plan, work.metadata
    broken = plan.requests_of_states(states.tolist())
    for request in broken:
        if request < plan.num_forwards:
            start, stop = metadata.qo_indptr[request : request + 2].tolist()
            slots = metadata.write_slots[start:stop]
            device = work.embeds.device
            work.kv_cache.clear(torch.as_tensor(slots, device=device))
    return broken
