"""What a step has left on the device, and how it comes to the host once it is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_trio.inference.gpu.sampling import best_tokens, draw
from pie_trio.inference.gpu.token_masks import forbid
from pie_trio.inference.gpu.upload import Download
from pie_trio.inference.outputs import Computed
from pie_trio.inference.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.inference.gpu.cache import DeviceKvCache
    from pie_trio.inference.gpu.runtime import Runtime
    from pie_trio.inference.gpu.sampling import Draws
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.processors import Prepared
    from pie_trio.inference.step import StepInput

__all__ = ["Drawn", "Read", "Work"]


@dataclass(frozen=True, slots=True)
class Work:
    """A step: what was asked for, and the arrays of it that are on the device."""

    step: StepInput
    model: Decoder
    kv_cache: DeviceKvCache
    embeds: Tensor
    tensors: Mapping[str, Tensor]

    def logits(self, states: Tensor) -> Tensor:
        """Return ``[num_head_rows, vocab_size]``."""
        if not self.step.plan.is_every_state:
            states = states.index_select(0, self.tensors["head_rows"])
        return self.model.logits(states)

    def find_broken(self, is_broken: NDArray[Any]) -> set[int]:
        """Return the requests of states that are not finite, and clear what they wrote."""
        states = np.flatnonzero(is_broken)
        if not len(states):
            return set()
        plan, metadata = self.step.plan, self.step.metadata
        broken = plan.requests_of_states(states.tolist())
        for request in broken:
            if request < plan.num_forwards:
                start, stop = metadata.qo_indptr[request : request + 2].tolist()
                slots = metadata.write_slots[start:stop]
                device = self.embeds.device
                self.kv_cache.clear(torch.as_tensor(slots, device=device))
        return broken


class Drawn:
    """A step that samples on the device; a :class:`~..step.Pending`.

    What comes back is one vector of integers.
    """

    def __init__(
        self, runtime: Runtime, work: Work, states: Tensor, draws: Draws
    ) -> None:
        """Ask the device for everything."""
        self._work, self._draws = work, draws
        tensors = work.tensors
        logits = work.logits(states)
        best, peaks = best_tokens(logits)
        # A row that is no numbers is drawn from zeros; its request fails anyway.
        is_bad = ~peaks.isfinite()
        logits = logits.masked_fill_(is_bad[:, None], 0.0)
        is_empty = is_bad[:0]
        if draws.num_masked:
            # Copies, for other rows may be drawn from the same logits without a mask.
            own = logits.index_select(0, tensors["masked_heads"])
            own, is_empty = forbid(own, tensors["token_masks"])
            logits = torch.cat((logits, own))
            best = torch.cat((best, best_tokens(own)[0]))
        chosen, is_settled = draw(logits, best, draws, tensors)
        is_broken = ~states.isfinite().all(dim=1)
        parts = (chosen, is_bad, is_broken, is_settled, is_empty)
        self._sizes = np.cumsum([part.shape[0] for part in parts])[:-1]
        found = torch.cat([part.int() for part in parts])
        self._download = Download(runtime, found)
        self._logits = logits
        self._token_ids = chosen

    @property
    def token_ids(self) -> Tensor | None:
        """See :class:`~..step.Pending`; some rows may yet be left to the host."""
        return self._token_ids

    def finish(self) -> Computed:
        """See :class:`~..step.Pending`."""
        work, draws = self._work, self._draws
        plan, config = work.step.plan, work.model.config
        found = np.split(self._download.read(), self._sizes)
        ids, bad, broken_states, settled, empty = found
        broken = work.find_broken(broken_states)
        broken |= plan.requests_of_states(plan.head_rows[bad > 0].tolist())
        ids = np.where(bad[plan.head_index] > 0, 0, ids).astype(np.int32)
        if not settled.all():
            self._sample(np.array(draws.filtered)[settled == 0], ids)
        prepared = work.step.prepared
        if prepared is None:
            self._sample(np.array(draws.left, np.int64), ids)
        else:
            self._process(prepared, empty, ids)
        no_logits = np.empty((0, config.vocab_size), np.float32)
        no_hidden = np.empty((0, config.hidden_size), np.float32)
        return Computed(no_logits, no_hidden, broken, ids)

    def _process(
        self,
        prepared: Prepared,
        is_empty: NDArray[np.int32],
        token_ids: NDArray[np.int32],
    ) -> None:
        """Note which masks left nothing, and draw the rows that masks do not say all about."""
        heads, num_heads = self._draws.heads, len(self._work.step.plan.head_rows)
        places = {row: index for index, row in enumerate(prepared.rows)}
        masked = [places[row] for row in prepared.rows if heads[row] >= num_heads]
        prepared.fail([masked[place] for place in np.flatnonzero(is_empty).tolist()])
        left = self._draws.left
        plain = np.array([row for row in left if row not in places], np.int64)
        self._sample(plain, token_ids)
        own = np.array([row for row in left if row in places], np.int64)
        if len(own):
            indices = [places[row] for row in own.tolist()]
            token_ids[own] = prepared.draw(indices, self._fetch(own))

    def _sample(self, rows: NDArray[np.int64], token_ids: NDArray[np.int32]) -> None:
        """Draw rows with filters that the device does not know, or that let too many tokens pass."""
        if not len(rows):
            return
        plan = self._work.step.plan
        samplers = plan.samplers()
        places: list[int] = rows.tolist()
        token_ids[rows] = sample(
            self._fetch(rows),
            [samplers[row] for row in places],
            plan.state_positions[plan.rows[rows]],
        )

    def _fetch(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return ``[len(rows), vocab_size]``, what some rows are drawn from."""
        heads = torch.as_tensor(self._draws.heads[rows], device=self._logits.device)
        found: NDArray[np.float32] = self._logits[heads].cpu().numpy()
        return found


class Read:
    """A step of which logits or hidden states are wanted, or nothing; a :class:`~..step.Pending`."""

    def __init__(self, work: Work, states: Tensor) -> None:
        """Ask the device for everything, and store what is to be stored."""
        self._work = work
        plan, tensors = work.step.plan, work.tensors
        self._is_broken = ~states.isfinite().all(dim=1)
        if plan.store_rows.size:
            rows = states.index_select(0, tensors["store_rows"])
            work.embeds.index_copy_(0, tensors["store_slots"], rows)
        self._hidden: Tensor | None = None
        self._logits: Tensor | None = None
        if plan.hidden_rows.size:
            self._hidden = states.index_select(0, tensors["hidden_rows"]).float()
        if plan.head_rows.size:
            self._logits = work.logits(states)

    @property
    def token_ids(self) -> Tensor | None:
        """See :class:`~..step.Pending`: the host draws."""
        return None

    def finish(self) -> Computed:
        """See :class:`~..step.Pending`."""
        config = self._work.model.config
        logits = np.empty((0, config.vocab_size), np.float32)
        hidden = np.empty((0, config.hidden_size), np.float32)
        if self._hidden is not None:
            hidden = self._hidden.cpu().numpy()
        if self._logits is not None:
            logits = self._logits.cpu().numpy()
        broken = self._work.find_broken(self._is_broken.cpu().numpy())
        return Computed(logits, hidden, broken)
