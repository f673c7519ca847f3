"""The computation of one step: from a checked batch to logits and hidden states."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pie_trio.inference.adapters.lowrank import adapt, group_rows
from pie_trio.inference.backends.torch_cpu import to_tensor
from pie_trio.inference.outputs import Computed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.adapters.lowrank import Adapter
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.outputs import OutputPlan
    from pie_trio.inference.processors import Prepared

__all__ = ["Compute", "Done", "Follows", "Pending", "StepInput", "compute"]


@dataclass(frozen=True, slots=True)
class Follows:
    """New tokens that the step before samples; they have not left the device.

    Attributes:
        rows: ``[n]`` int64, which of the new tokens they are.
        sources: ``[n]`` int64, which rows of the step before sample them.
        token_ids: ``[num_rows]`` int64 on the device, what that step samples.
    """

    rows: NDArray[np.int64]
    sources: NDArray[np.int64]
    token_ids: Tensor


@dataclass(frozen=True, slots=True)
class StepInput:
    """A batch, and all that was found out about it before the device is asked for anything.

    Attributes:
        batch: Checked; its copies were made.
        metadata: Of the batch.
        plan: Of the batch.
        prepared: The rows that go through processors; None where there are none.
        adapters: Those of the batch by name; None where there are none.
        follows: What has to be entered first; None where all tokens are known.
    """

    batch: Batch
    metadata: BatchMetadata
    plan: OutputPlan
    prepared: Prepared | None = None
    adapters: Mapping[str, Adapter] | None = None
    follows: Follows | None = None


class Pending(Protocol):
    """A step that a device was asked for."""

    @property
    def token_ids(self) -> Tensor | None:
        """``[num_rows]`` int64 on the device, what it samples; None where the host does."""
        ...

    def finish(self) -> Computed:
        """Wait for it. Once, in the order of the steps."""
        ...


class Compute(Protocol):
    """:func:`compute`, or what does the same on another device."""

    def __call__(
        self,
        step: StepInput,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        /,
    ) -> Computed:
        """Run the layers, store what is to be stored, and read what was asked for.

        Args:
            step: What to do.
            model: As it was loaded.
            kv_cache: What the model's kernels allocated.
            embeds: ``[num_embeds, hidden_size]``.
        """
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """A step that needs no waiting for; a :class:`Pending`."""

    computed: Computed
    token_ids: Tensor | None = None

    def finish(self) -> Computed:
        """See :class:`Pending`."""
        return self.computed


def compute(
    step: StepInput, model: Decoder, kv_cache: PagedCache, embeds: Tensor
) -> Computed:
    """Run the layers on the CPU, store what is to be stored, and read what was asked for."""
    batch, metadata, plan = step.batch, step.metadata, step.plan
    if step.adapters is not None:
        names = [forward.adapter for forward in batch.forwards]
        model = adapt(model, group_rows(names, metadata, step.adapters))
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
