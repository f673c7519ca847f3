"""Every rank but 0: it runs the layers, and leaves all the rest to rank 0."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pie_trio.inference.engine import TorchEngine
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.outputs import plan_outputs
from pie_trio.inference.parallel.group import Group
from pie_trio.inference.parallel.split import Split
from pie_trio.inference.step import StepInput

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.engine_api import Batch, ModelInfo
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.processors import ProcessorTable
    from pie_trio.inference.step import Compute

__all__ = ["Follower", "FollowingEngine"]


class FollowingEngine(TorchEngine):
    """The engine of one rank. Its pages are this rank's part of them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what :class:`TorchEngine` takes."""
        super().__init__(*arguments, **options)
        self._stepping = threading.Lock()

    def follow(self, batch: Batch) -> None:
        """Run a step that rank 0 has found possible, and leave its results to it.

        Raises:
            EngineError: torch failed, so that the ranks no longer do the same.
        """
        model, kv_cache, embeds = self._open()
        metadata = build_metadata(batch, self._info.page_size)
        plan = plan_outputs(batch, metadata)
        # The logits are rank 0's: there is nothing here to draw from.
        plan = replace(plan, is_sampling=False, is_drawing=False)
        with (
            self._stepping,
            self._adapters.use(batch.forwards) as adapters,
            self._torch(),
        ):
            kv_cache.copy(batch.copies)
            step = StepInput(batch, metadata, plan, None, adapters)
            self._compute(step, model, kv_cache, embeds)

    def drop_adapter(self, name: str) -> None:
        """Drop an adapter, if it is there: this may be the rank that could not load it.

        Rank 0 has done with it, so that the step which uses it here ends without help.
        """
        with self._stepping:
            if name in self.info.adapters:
                super().drop_adapter(name)


class Follower:
    """A rank but 0, as a :class:`~.part.Part`.

    Attributes:
        group: All ranks.
    """

    def __init__(self, rank: int, size: int) -> None:
        """Be rank ``rank`` of ``size``."""
        self.group = Group(Split(rank, size))

    def make_engine(
        self,
        info: ModelInfo,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        *,
        processors: ProcessorTable,
        num_threads: int | None,
        compute: Compute,
    ) -> FollowingEngine:
        """See :class:`~.part.Part`."""
        return FollowingEngine(
            *(info, model, kv_cache, embeds),
            processors=processors,
            num_threads=num_threads,
            compute=compute,
        )
