"""One step on the GPU: what goes there, what comes back, and nothing in between."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pie_trio.inference.adapters.lowrank import adapt, group_rows
from pie_trio.inference.gpu.planning import effective_windows
from pie_trio.inference.gpu.results import Drawn, Read, Work
from pie_trio.inference.gpu.sampling import is_for_host, plan_draws
from pie_trio.inference.gpu.token_masks import as_bytes
from pie_trio.inference.paging.cascade import find_cascade

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.inference.gpu.cache import DeviceKvCache
    from pie_trio.inference.gpu.graphs import DecodeGraphs
    from pie_trio.inference.gpu.kernels import FlashInferKernels
    from pie_trio.inference.gpu.lora import GroupedAdapters
    from pie_trio.inference.gpu.sampling import Draws
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.outputs import Computed, OutputPlan
    from pie_trio.inference.step import Pending, StepInput

__all__ = ["GpuStep"]


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
        step: StepInput,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        /,
    ) -> Computed:
        """See :class:`~..step.Compute`."""
        return self.launch(step, model, kv_cache, embeds).finish()

    def launch(
        self, step: StepInput, model: Decoder, kv_cache: PagedCache, embeds: Tensor
    ) -> Pending:
        """Ask the device for a step, and wait for nothing.

        Args:
            step: As of a call, and so are the others.
            model: As it was loaded.
            kv_cache: What the kernels allocated.
            embeds: ``[num_embeds, hidden_size]``.
        """
        batch, plan = step.batch, step.plan
        draws = _plan_draws(step)
        arrays = _arrays(plan)
        if step.follows is not None:
            arrays["follow_rows"] = step.follows.rows
            arrays["follow_sources"] = step.follows.sources
        if draws is not None:
            arrays |= draws.arrays
        cache = cast("DeviceKvCache", kv_cache)  # what the kernels allocated
        states: Tensor | None = None
        if not batch.forwards:
            tensors = self._kernels.uploader.upload(arrays)
        else:
            found = self._replay(step, model, cache, arrays)
            if found is None:
                found = self._eager(step, model, cache, embeds, arrays)
            states, tensors = found
        if batch.projections or states is None:
            stored = embeds.index_select(0, tensors["project_slots"])
            states = stored if states is None else torch.cat((states, stored))
        work = Work(step, model, cache, embeds, tensors)
        if draws is not None:
            return Drawn(self._kernels.runtime, work, states, draws)
        return Read(work, states)

    def _replay(
        self,
        step: StepInput,
        model: Decoder,
        kv_cache: DeviceKvCache,
        arrays: dict[str, NDArray[Any]],
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Run the layers by a graph; None where that is impossible, or would take longer."""
        metadata = step.metadata
        if step.adapters is not None or not self.graphs.takes(step.batch, metadata):
            return None
        windows = effective_windows(model.config.attention, metadata)
        if all(window is None for window in windows):
            rule = self._kernels.cascade
            min_saved = rule.min_saved(kv_cache.page_bytes, is_graph=True)
            if find_cascade(metadata, min_saved=min_saved) is not None:
                return None
        found = self.graphs.run(metadata, arrays, partial(_enter, step))
        self.num_replays += found is not None
        return found

    def _eager(
        self,
        step: StepInput,
        model: Decoder,
        kv_cache: DeviceKvCache,
        embeds: Tensor,
        arrays: dict[str, NDArray[Any]],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the layers kernel by kernel; everything goes to the device in one copy."""
        planner, attention = self._kernels.planner, model.config.attention
        metadata = step.metadata
        rule = self._kernels.cascade
        min_saved = rule.min_saved(kv_cache.page_bytes, is_graph=False)
        prepared = planner.prepare(step.batch, metadata, attention, min_saved=min_saved)
        grouped = self._group(step)
        if grouped is not None:
            arrays = {**arrays, **grouped.arrays}
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
        _enter(step, tensors)
        hidden = model.embed(tensors["token_ids"])
        if metadata.embed_rows.size:
            stored = embeds.index_select(0, tensors["embed_slots"])
            hidden.index_copy_(0, tensors["embed_rows"], stored)
        planned = planner.plan(prepared, tensors, kv_cache, attention)
        if grouped is not None:
            model = grouped.adapt(model, tensors)
        elif step.adapters is not None:
            names = [forward.adapter for forward in step.batch.forwards]
            device = self._kernels.device
            model = adapt(model, group_rows(names, metadata, step.adapters, device))
        return model.forward(hidden, tensors["positions"], planned), tensors

    def _group(self, step: StepInput) -> GroupedAdapters | None:
        """Return the adapters of a batch where there are kernels for them."""
        if step.adapters is None or self._kernels.adapters is None:
            return None
        names = [forward.adapter for forward in step.batch.forwards]
        lengths = step.metadata.query_lens
        return self._kernels.adapters.prepare(names, lengths, step.adapters)


def _enter(step: StepInput, tensors: dict[str, Tensor]) -> None:
    """Put the tokens of the step before in their places; they have not left the device."""
    if step.follows is not None:
        sampled = step.follows.token_ids.index_select(0, tensors["follow_sources"])
        tensors["token_ids"].index_copy_(0, tensors["follow_rows"], sampled.int())


def _arrays(plan: OutputPlan) -> dict[str, NDArray[Any]]:
    return {
        "project_slots": plan.project_slots,
        "head_rows": plan.head_rows,
        "hidden_rows": plan.hidden_rows,
        "store_rows": plan.store_rows,
        "store_slots": plan.store_slots.astype(np.int64),
    }


def _plan_draws(step: StepInput) -> Draws | None:
    """Return what the device draws; None where it only computes."""
    plan, prepared = step.plan, step.prepared
    if not plan.is_drawing or not plan.head_rows.size:
        return None
    samplers = plan.samplers()
    masks: dict[int, NDArray[np.uint8]] = {}
    on_host: set[int] = set()
    if prepared is not None:
        rows = prepared.rows
        own = [i for i in prepared.masking if not is_for_host(samplers[rows[i]])]
        if own:
            found = as_bytes(prepared.masks(own))
            masks = {rows[i]: mask for i, mask in zip(own, found, strict=True)}
        on_host = {*rows} - masks.keys()
    return plan_draws(
        samplers,
        plan.state_positions[plan.rows],
        plan.head_index,
        num_heads=len(plan.head_rows),
        masks=masks,
        on_host=on_host,
    )
