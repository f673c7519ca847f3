"""The computation of one step: from a checked batch to logits and hidden states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pie_trio.inference.backends.torch_cpu import to_tensor
from pie_trio.inference.outputs import Computed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.outputs import OutputPlan

__all__ = ["Compute", "compute"]


class Compute(Protocol):
    """:func:`compute`, or what does the same on another device."""

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
        """Run the layers, store what is to be stored, and read what was asked for.

        Args:
            batch: Checked; its copies were made.
            metadata: Of the batch.
            plan: Of the batch.
            model: Perhaps with adapters for this batch.
            kv_cache: What the model's kernels allocated.
            embeds: ``[num_embeds, hidden_size]``.
        """
        ...


def compute(
    batch: Batch,
    metadata: BatchMetadata,
    plan: OutputPlan,
    model: Decoder,
    kv_cache: PagedCache,
    embeds: Tensor,
) -> Computed:
    """Run the layers on the CPU, store what is to be stored, and read what was asked for."""
    states, broken = _states(batch, metadata, plan, model, kv_cache, embeds)
    logits, hidden = _read_states(states, plan, model, embeds)
    return Computed(logits, hidden, broken)


def _states(
    batch: Batch,
    metadata: BatchMetadata,
    plan: OutputPlan,
    model: Decoder,
    kv_cache: PagedCache,
    embeds: Tensor,
) -> tuple[Tensor, set[int]]:
    """Run the layers, and read what is projected.

    Returns:
        ``[num_states, hidden_size]``, before the final norm; and the requests of which some
        state is not finite.
    """
    parts: list[Tensor] = []
    if batch.forwards:
        hidden = model.embed(to_tensor(metadata.token_ids))
        if metadata.embed_rows.size:
            stored = embeds.index_select(0, to_tensor(metadata.embed_slots))
            hidden.index_copy_(0, to_tensor(metadata.embed_rows), stored)
        attention = model.kernels.plan_attention(
            batch, metadata, kv_cache, model.config.attention
        )
        positions = to_tensor(metadata.positions)
        parts.append(model.forward(hidden, positions, attention))
    if batch.projections or not parts:
        parts.append(embeds.index_select(0, to_tensor(plan.project_slots)))
    states = parts[0] if len(parts) == 1 else torch.cat(parts)
    # One sum finds it; whose it is, is found only where there is something to find.
    if math.isfinite(states.sum().item()):
        return states, set()
    is_bad = (~states.isfinite().all(dim=1)).numpy()
    broken = plan.requests_of_states(np.flatnonzero(is_bad).tolist())
    _forget((r for r in broken if r < plan.num_forwards), metadata, kv_cache)
    return states, broken


def _forget(
    requests: Iterable[int], metadata: BatchMetadata, kv_cache: PagedCache
) -> None:
    """Clear what some requests wrote.

    A masked slot is multiplied by a probability of 0, which NaN would survive: whoever gets
    the page next would be broken as well.
    """
    for request in requests:
        start, stop = metadata.qo_indptr[request : request + 2].tolist()
        kv_cache.clear(to_tensor(metadata.write_slots[start:stop]))


def _read_states(
    states: Tensor, plan: OutputPlan, model: Decoder, embeds: Tensor
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Store what is to be stored, and return the logits and hidden states of the plan."""
    logits = np.empty((0, model.config.vocab_size), np.float32)
    hidden = np.empty((0, model.config.hidden_size), np.float32)
    if plan.store_rows.size:
        rows = states.index_select(0, to_tensor(plan.store_rows))
        embeds.index_copy_(0, to_tensor(plan.store_slots).long(), rows)
    if plan.hidden_rows.size:
        rows = states.index_select(0, to_tensor(plan.hidden_rows))
        hidden = rows.float().numpy()
    if plan.head_rows.size:
        if not plan.is_every_state:
            states = states.index_select(0, to_tensor(plan.head_rows))
        logits = model.logits(states).numpy()
    return logits, hidden
