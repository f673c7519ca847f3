"""Plans FlashInfer's wrappers for a batch, once for all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from pie_trio.inference.gpu.attention import (
    CascadePart,
    FlashInferAttention,
    Part,
    Slots,
)
from pie_trio.inference.gpu.library import needs_tensor_cores
from pie_trio.inference.paging.cascade import Cascade
from pie_trio.inference.paging.groups import append_places, split_batch
from pie_trio.inference.paging.masks import pack_masks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch
    from pie_trio.inference.gpu.attention import Attender
    from pie_trio.inference.gpu.cache import DeviceKvCache
    from pie_trio.inference.gpu.library import (
        DecodeWrapper,
        FlashInfer,
        PrefillWrapper,
    )
    from pie_trio.inference.gpu.runtime import Event, Runtime
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import AttentionConfig
    from pie_trio.inference.paging.cascade import Level
    from pie_trio.inference.paging.groups import PagedGroup

__all__ = [
    "Planner",
    "PreparedBatch",
    "effective_windows",
    "plan_decode",
    "plan_masked",
    "plan_options",
    "plan_prefill",
]

WrapperKind = Literal["decode", "prefill", "masked", "shared", "own"]
"""Those of groups, and the two levels of a cascade."""

WORKSPACE_BYTES = 128 << 20
"""What FlashInfer recommends for the partial results of long contexts."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """What attention needs of a batch, on the host.

    Attributes:
        groups: See :func:`~..paging.groups.split_batch`.
        windows: Those of the model, None where a window holds every context.
        arrays: By name, for the device.
    """

    groups: Sequence[PagedGroup | Cascade]
    windows: Sequence[int | None]
    arrays: Mapping[str, NDArray[Any]]


@dataclass(slots=True)
class _Entry:
    """A wrapper, and the event after its last plan."""

    wrapper: Any
    event: Event


class Planner:
    """Owns the wrappers of an engine: one for each kind of group and each window.

    They share the workspace for partial results, since they run one after the other. What a plan
    decides is in a workspace of each wrapper's own.
    """

    def __init__(self, library: FlashInfer, runtime: Runtime) -> None:
        """Allocate the shared workspace."""
        self.library, self.runtime = library, runtime
        self.workspace = torch.zeros(
            WORKSPACE_BYTES, dtype=torch.uint8, device=runtime.device
        )
        self._entries: dict[tuple[WrapperKind, int | None], _Entry] = {}

    def prepare(
        self,
        batch: Batch,
        metadata: BatchMetadata,
        config: AttentionConfig,
        *,
        min_saved: int | None = None,
    ) -> PreparedBatch:
        """Make the arrays of a batch; the device is not asked for anything yet.

        Args:
            batch: To compute.
            metadata: Of the batch.
            config: Of the model.
            min_saved: Pages, from which on common beginnings are read only once; None for never.
        """
        windows = effective_windows(config, metadata)
        if any(window is not None for window in windows):
            min_saved = None
        groups = split_batch(batch, metadata, min_saved=min_saved)
        return PreparedBatch(groups, windows, _arrays_of(groups, metadata, windows))

    def plan(
        self,
        prepared: PreparedBatch,
        tensors: Mapping[str, Tensor],
        kv_cache: DeviceKvCache,
        config: AttentionConfig,
    ) -> FlashInferAttention:
        """Plan a batch once for all layers.

        Args:
            prepared: The batch.
            tensors: Its arrays on the device.
            kv_cache: Where its keys go.
            config: Of the model.
        """
        parts: list[Attender] = []
        for index, group in enumerate(prepared.groups):
            if isinstance(group, Cascade):
                part: Attender = self._plan_cascade(
                    index, group, kv_cache, config, tensors
                )
            else:
                part = self._plan_group(
                    index, group, kv_cache, config, prepared.windows, tensors
                )
            parts.append(part)
        slots = Slots(
            tensors["owners"],
            tensors["places"],
            tensors["page_ids"],
            tensors["page_indptr"],
            tensors["last_page_lens"],
        )
        return FlashInferAttention(self.library, kv_cache, config, slots, parts)

    def _plan_group(
        self,
        index: int,
        group: PagedGroup,
        kv_cache: DeviceKvCache,
        config: AttentionConfig,
        windows: Sequence[int | None],
        tensors: Mapping[str, Tensor],
    ) -> Part:
        is_whole = group.rows is None
        page_ids = tensors["page_ids" if is_whole else f"page_ids{index}"]
        wrappers: dict[int | None, DecodeWrapper | PrefillWrapper] = {}
        for window in dict.fromkeys(windows):
            entry = self._entry(group.kind, window, kv_cache)
            entry.event.synchronize()  # copies of the last plan read the wrapper's memory
            options = plan_options(kv_cache, config, window)
            if group.kind == "decode":
                plan_decode(entry.wrapper, group, page_ids, kv_cache, options)
            elif group.kind == "prefill":
                plan_prefill(entry.wrapper, group, page_ids, kv_cache, options)
            else:
                bits = tensors[f"bits{window}"], tensors[f"bits_indptr{window}"]
                plan_masked(entry.wrapper, group, page_ids, kv_cache, options, *bits)
            entry.event.record()
            wrappers[window] = entry.wrapper
        blind = None
        if group.kind == "masked":
            blind = [tensors.get(f"blind{window}") for window in windows]
        rows = None if is_whole else tensors[f"rows{index}"]
        return Part([wrappers[window] for window in windows], rows, blind)

    def _plan_cascade(
        self,
        index: int,
        cascade: Cascade,
        kv_cache: DeviceKvCache,
        config: AttentionConfig,
        tensors: Mapping[str, Tensor],
    ) -> CascadePart:
        # FlashInfer's own wrapper of several levels does the same two runs and the same merge,
        # but leaves the choice of their kernel to FlashInfer, which takes FA3 on Hopper.
        wrappers: list[PrefillWrapper] = []
        options = plan_options(kv_cache, config, None)
        levels: list[tuple[WrapperKind, Level, bool]] = [
            ("shared", cascade.shared, False),
            ("own", cascade.own, True),
        ]
        for kind, level, is_causal in levels:
            entry = self._entry(kind, None, kv_cache)
            entry.event.synchronize()
            page_ids = tensors[f"{kind}_page_ids{index}"]
            more = {**options, "causal": is_causal}
            plan_prefill(entry.wrapper, level, page_ids, kv_cache, more)
            entry.event.record()
            wrappers.append(entry.wrapper)
        shared, own = wrappers
        return CascadePart(self.library, shared, own, tensors[f"rows{index}"])

    def _entry(
        self, kind: WrapperKind, window: int | None, kv_cache: DeviceKvCache
    ) -> _Entry:
        key = (kind, window)
        if key not in self._entries:
            self._entries[key] = _Entry(
                self._make(kind, kv_cache), self.runtime.event()
            )
        return self._entries[key]

    def _make(
        self, kind: WrapperKind, kv_cache: DeviceKvCache
    ) -> DecodeWrapper | PrefillWrapper:
        # fa2 by name: "auto" may take a kernel that has no masks, and keeps its first choice.
        if kind != "decode":
            return self.library.BatchPrefillWithPagedKVCacheWrapper(
                self.workspace, "NHD", backend="fa2"
            )
        return self.library.BatchDecodeWithPagedKVCacheWrapper(
            self.workspace,
            "NHD",
            use_tensor_cores=needs_tensor_cores(
                kv_cache.num_heads, kv_cache.num_kv_heads
            ),
            backend="fa2",
        )


def effective_windows(
    config: AttentionConfig, metadata: BatchMetadata
) -> list[int | None]:
    """Return the windows of a model, None for those that are wider than every context."""
    longest = int(metadata.kv_lens.max())
    return [w if w is not None and w < longest else None for w in config.windows]


def plan_options(
    kv_cache: DeviceKvCache, config: AttentionConfig, window: int | None
) -> dict[str, Any]:
    """Return what every plan of a model says; FlashInfer's dtype would be float16."""
    dtype = kv_cache.pages.dtype
    return {
        "sm_scale": config.scale,
        "window_left": -1 if window is None else window - 1,
        "logits_soft_cap": config.softcap,
        "q_data_type": dtype,
        "kv_data_type": dtype,
        "o_data_type": dtype,
    }


def plan_decode(
    wrapper: DecodeWrapper,
    group: Any,
    page_ids: Tensor,
    kv_cache: DeviceKvCache,
    options: Mapping[str, Any],
) -> None:
    """Plan one token a request.

    Args:
        wrapper: Which is planned.
        group: Has ``page_indptr``, ``last_page_lens`` and ``kv_lens``.
        page_ids: On the device.
        kv_cache: Whose shape counts.
        options: See :func:`plan_options`.
    """
    # On the host, where plan reads them: from the device it would wait for them.
    wrapper.plan(
        torch.as_tensor(group.page_indptr),
        page_ids,
        torch.as_tensor(group.last_page_lens),
        kv_cache.num_heads,
        kv_cache.num_kv_heads,
        kv_cache.head_dim,
        kv_cache.page_size,
        seq_lens=torch.as_tensor(group.kv_lens),
        **options,
    )


def plan_prefill(
    wrapper: PrefillWrapper,
    group: PagedGroup | Level,
    page_ids: Tensor,
    kv_cache: DeviceKvCache,
    options: Mapping[str, Any],
) -> None:
    """Plan any number of tokens a request, each of which sees all up to its own."""
    wrapper.plan(
        torch.as_tensor(group.qo_indptr),
        torch.as_tensor(group.page_indptr),
        page_ids,
        torch.as_tensor(group.last_page_lens),
        kv_cache.num_heads,
        kv_cache.num_kv_heads,
        kv_cache.head_dim,
        kv_cache.page_size,
        seq_lens=torch.as_tensor(group.kv_lens),
        **{"causal": True, **options},
    )


def plan_masked(
    wrapper: PrefillWrapper,
    group: PagedGroup,
    page_ids: Tensor,
    kv_cache: DeviceKvCache,
    options: Mapping[str, Any],
    bits: Tensor,
    byte_indptr: Tensor,
) -> None:
    """Plan requests with masks, which lie on the device."""
    # The bits hold the window, too.
    masked = {**options, "causal": False, "packed_custom_mask": bits, "window_left": -1}
    plan_prefill(wrapper, group, page_ids, kv_cache, masked)
    # plan() counts the masks' beginnings in bits, as if it were to pack them; the kernel counts
    # in bytes. So each request but the first would read a wrong mask.
    # See https://github.com/flashinfer-ai/flashinfer/pull/2201.
    wrapper._mask_indptr_buf = byte_indptr  # pyright: ignore[reportPrivateUsage] -- no other way


def _arrays_of(
    groups: Sequence[PagedGroup | Cascade],
    metadata: BatchMetadata,
    windows: Sequence[int | None],
) -> dict[str, NDArray[Any]]:
    """Return all that the device needs for attention, by name."""
    owners, places = append_places(metadata)
    arrays: dict[str, NDArray[Any]] = {
        "owners": owners,
        "places": places,
        "page_ids": metadata.page_ids,
        "page_indptr": metadata.page_indptr,
        "last_page_lens": metadata.last_page_lens,
    }
    for index, group in enumerate(groups):
        if isinstance(group, Cascade):
            arrays[f"rows{index}"] = group.rows
            arrays[f"shared_page_ids{index}"] = group.shared.page_ids
            arrays[f"own_page_ids{index}"] = group.own.page_ids
            continue
        if group.rows is not None:
            arrays[f"rows{index}"] = group.rows
            arrays[f"page_ids{index}"] = group.page_ids
        if group.kind == "masked":
            for window in dict.fromkeys(windows):
                packed = pack_masks(group.masks, window)
                arrays[f"bits{window}"] = packed.bits
                arrays[f"bits_indptr{window}"] = packed.byte_indptr
                if len(packed.blind_rows):
                    arrays[f"blind{window}"] = packed.blind_rows.astype(np.int64)
    return arrays
