"""Graphs of decode steps, one for each size of a batch, and when they may be replayed.

A graph holds addresses, so all that changes from step to step lies in memory that stays where it
is. What FlashInfer decides about a batch is no part of the graph either: each replay is planned
anew, or its kernels would read the last batch's contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from pie_trio.engine_api import NO_SLOT
from pie_trio.errors import EngineError
from pie_trio.inference.gpu.attention import FlashInferAttention, Part, Slots
from pie_trio.inference.gpu.library import needs_tensor_cores
from pie_trio.inference.gpu.planning import plan_decode, plan_options
from pie_trio.inference.gpu.upload import views
from pie_trio.inference.metadata import BatchMetadata
from pie_trio.inference.models.mlp import SparseMlp
from pie_trio.inference.paging.buckets import bucket_for, pad_decode
from pie_trio.inference.paging.masks import is_causal
from pie_trio.inference.paging.staging import lay_out

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.gpu.cache import DeviceKvCache
    from pie_trio.inference.gpu.kernels import FlashInferKernels
    from pie_trio.inference.gpu.library import DecodeWrapper
    from pie_trio.inference.gpu.runtime import Event, Graph
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.paging.buckets import PaddedDecode

__all__ = ["DecodeGraphs"]

MAX_PAGE_IDS = 1 << 18
"""Of all requests of a batch; those with more run without a graph."""


_BYTES_A_ROW = 256
"""Of what is done with a row of the result, besides its mask."""

_SPARE_BYTES = 4096
"""For the ends of arrays, which are aligned."""


def _nothing(_: dict[str, Tensor]) -> None:
    """All tokens are known."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """The graph of one bucket.

    Attributes:
        static: The arrays that a replay reads, with room for ``max_page_ids``.
        max_page_ids: Of all requests.
        wrappers: One for each window, planned before each replay.
        event: After the last plan.
        graph: To replay.
        states: ``[bucket, hidden_size]``, written by each replay.
    """

    static: Mapping[str, Tensor]
    max_page_ids: int
    wrappers: Sequence[DecodeWrapper]
    event: Event
    graph: Graph
    states: Tensor


class DecodeGraphs:
    """The graphs of one model and one KV cache."""

    def __init__(
        self, model: Decoder, kernels: FlashInferKernels, kv_cache: DeviceKvCache
    ) -> None:
        """Begin without any; see :meth:`capture`."""
        self._model, self._kernels, self._kv_cache = model, kernels, kv_cache
        # One for all graphs, since they run one after the other: what a replay reads, and
        # behind it what is done with its result.
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._captured: dict[int, _Captured] = {}
        self._buckets: list[int] = []

    @classmethod
    def capture(
        cls,
        model: Decoder,
        kernels: FlashInferKernels,
        kv_cache: PagedCache,
        *,
        buckets: Sequence[int],
    ) -> DecodeGraphs:
        """Capture a graph for each bucket.

        Models with experts get none: which experts a batch needs is found out on the host.
        """
        graphs = cls(model, kernels, cast("DeviceKvCache", kv_cache))
        if any(isinstance(layer.mlp, SparseMlp) for layer in model.layers):
            return graphs
        graphs._allocate(max(buckets, default=0))
        with torch.inference_mode():
            # The largest first: the others find room in the memory that it took.
            for bucket in sorted(buckets, reverse=True):
                graphs._captured[bucket] = graphs._capture(bucket)
        graphs._buckets = sorted(buckets)
        return graphs

    def takes(self, batch: Batch, metadata: BatchMetadata) -> bool:
        """Say whether a batch is one that there are graphs for."""
        if len(metadata.token_ids) != metadata.num_requests or metadata.embed_rows.size:
            return False
        if bucket_for(metadata.num_requests, self._buckets) is None:
            return False
        masks = (forward.mask for forward in batch.forwards)
        return all(mask is None or is_causal(mask) for mask in masks)

    def run(
        self,
        metadata: BatchMetadata,
        more: Mapping[str, NDArray[Any]] | None = None,
        enter: Callable[[dict[str, Tensor]], None] = _nothing,
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """Replay a step.

        Args:
            metadata: Of a batch that :meth:`takes` says yes to.
            more: Arrays that are wanted on the device besides; they go there in the same copy.
            enter: Called with all arrays on the device, may change what the graph reads.

        Returns:
            ``[num_requests, hidden_size]`` before the final norm; and ``more`` on the device. The
            next replay writes over both. None where it has too many pages.
        """
        bucket = bucket_for(metadata.num_requests, self._buckets)
        assert bucket is not None, "takes has said so"
        padded = pad_decode(metadata, bucket, self._kv_cache.scratch_page)
        captured = self._captured[bucket]
        if len(padded.page_ids) > captured.max_page_ids:
            return None
        arrays = {**_arrays(padded), **(more or {})}
        size = lay_out(arrays).num_bytes
        if size > len(self._memory):
            return None
        states, tensors = self._replay(captured, padded, arrays, enter)
        return states[: metadata.num_requests], tensors

    def check(self) -> None:
        """Compare each graph with the same step without a graph, for contexts of several lengths.

        Reads and writes nothing but the scratch page.

        Raises:
            EngineError: They differ.
        """
        for bucket, captured in self._captured.items():
            lengths = np.arange(bucket) % 4 + 1  # in pages, unlike when it was captured
            padded = self._on_scratch(bucket, lengths.astype(np.int32))
            with torch.inference_mode():
                found = self._replay(captured, padded, _arrays(padded))[0].clone()
                expected = self._step(captured.static, captured.wrappers)
            if not torch.allclose(
                found.float(), expected.float(), rtol=2e-2, atol=2e-2
            ):
                error = float((found.float() - expected.float()).abs().max())
                raise EngineError(
                    f"the graph of {bucket} requests gives other states than the same kernels "
                    f"without it (by up to {error:.3g}): start with --device cpu, and report it"
                )

    def _replay(
        self,
        captured: _Captured,
        padded: PaddedDecode,
        arrays: Mapping[str, NDArray[Any]],
        enter: Callable[[dict[str, Tensor]], None] = _nothing,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tensors = self._load(padded, arrays, captured.wrappers, captured.event)
        enter(tensors)
        captured.graph.replay()
        return captured.states, tensors

    def _allocate(self, bucket: int) -> None:
        """Allocate what the graph of the largest batch needs."""
        numbers = 6 * (bucket + 1) + self._max_page_ids(bucket)
        mask = 4 * -(-self._model.config.vocab_size // 32)
        num_bytes = numbers * 4 + bucket * (mask + _BYTES_A_ROW) + _SPARE_BYTES
        device = self._kernels.runtime.device
        self._memory = torch.zeros(num_bytes, dtype=torch.uint8, device=device)

    def _max_page_ids(self, bucket: int) -> int:
        return min(MAX_PAGE_IDS, bucket * self._kv_cache.num_pages) + bucket

    def _capture(self, bucket: int) -> _Captured:
        kernels, kv_cache = self._kernels, self._kv_cache
        runtime, config = kernels.runtime, self._model.config
        max_page_ids = self._max_page_ids(bucket)
        padded = self._on_scratch(bucket, np.ones(bucket, np.int32))
        spare = np.zeros(max_page_ids, np.int32)
        static = views(self._memory, lay_out({**_arrays(padded), "page_ids": spare}))
        wrappers = [
            kernels.library.BatchDecodeWithPagedKVCacheWrapper(
                kernels.planner.workspace,
                "NHD",
                use_cuda_graph=True,
                use_tensor_cores=needs_tensor_cores(
                    kv_cache.num_heads, kv_cache.num_kv_heads
                ),
                paged_kv_indptr_buffer=static["page_indptr"],
                paged_kv_indices_buffer=static["page_ids"],
                paged_kv_last_page_len_buffer=static["last_page_lens"],
                backend="fa2",
            )
            for _ in config.attention.windows
        ]
        event = runtime.event()
        self._load(padded, _arrays(padded), wrappers, event)
        graph, states = runtime.capture(lambda: self._step(static, wrappers))
        return _Captured(static, max_page_ids, wrappers, event, graph, states)

    def _load(
        self,
        padded: PaddedDecode,
        arrays: Mapping[str, NDArray[Any]],
        wrappers: Sequence[DecodeWrapper],
        event: Event,
    ) -> dict[str, Tensor]:
        """Write a batch into the memory of the graphs, and plan it."""
        event.synchronize()  # copies of the last plan read the wrappers' memory
        tensors = self._kernels.uploader.upload(arrays, self._memory)
        attention = self._model.config.attention
        for window, wrapper in zip(attention.windows, wrappers, strict=True):
            options = plan_options(self._kv_cache, attention, window)
            plan_decode(wrapper, padded, tensors["page_ids"], self._kv_cache, options)
        event.record()
        return tensors

    def _step(
        self, static: Mapping[str, Tensor], wrappers: Sequence[DecodeWrapper]
    ) -> Tensor:
        """Launch the kernels of a step."""
        slots = Slots(
            static["owners"],
            static["append_slots"],
            static["page_ids"],
            static["page_indptr"],
            static["last_page_lens"],
        )
        attention = FlashInferAttention(
            self._kernels.library,
            self._kv_cache,
            self._model.config.attention,
            slots,
            [Part(wrappers)],
        )
        hidden = self._model.embed(static["token_ids"])
        return self._model.forward(hidden, static["positions"], attention)

    def _on_scratch(self, bucket: int, num_pages: NDArray[np.int32]) -> PaddedDecode:
        """Return requests of so many full pages, all of them the scratch page."""
        page_size, total = self._kv_cache.page_size, int(num_pages.sum())
        ids = np.arange(bucket, dtype=np.int32)
        kv_lens = num_pages * np.int32(page_size)
        none = np.full(0, NO_SLOT, np.int32)
        metadata = BatchMetadata(
            page_size=page_size,
            token_ids=ids % self._model.config.vocab_size,
            positions=kv_lens - 1,
            write_slots=np.zeros(bucket, np.int64),
            query_lens=np.ones(bucket, np.int32),
            kv_lens=kv_lens,
            qo_indptr=np.arange(bucket + 1, dtype=np.int32),
            page_indptr=np.concatenate(([0], num_pages.cumsum())).astype(np.int32),
            page_ids=np.full(total, self._kv_cache.scratch_page, np.int32),
            embed_rows=none.astype(np.int64),
            embed_slots=none,
        )
        return pad_decode(metadata, bucket, self._kv_cache.scratch_page)


def _arrays(padded: PaddedDecode) -> dict[str, NDArray[Any]]:
    """Return what a graph reads; the pages last, since their number changes."""
    return {
        "token_ids": padded.token_ids,
        "positions": padded.positions,
        "owners": np.arange(len(padded.token_ids), dtype=np.int32),
        "append_slots": padded.append_slots,
        "page_indptr": padded.page_indptr,
        "last_page_lens": padded.last_page_lens,
        "page_ids": padded.page_ids,
    }
