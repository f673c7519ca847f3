"""Carries the arrays of a step to the device, and numbers back: one copy each, none waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pie_trio.inference.paging.staging import ALIGNMENT, Layout, fill, lay_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.inference.gpu.runtime import Event, Runtime

__all__ = ["Download", "Uploader", "views"]

_DTYPES: dict[np.dtype[Any], torch.dtype] = {
    np.dtype(np.int32): torch.int32,
    np.dtype(np.int64): torch.int64,
    np.dtype(np.uint8): torch.uint8,
    np.dtype(np.float32): torch.float32,
    np.dtype(np.float64): torch.float64,
}


@dataclass(slots=True)
class _Slot:
    """Pinned memory, and the event after the copy that reads it."""

    memory: Tensor
    event: Event


class Uploader:
    """Two pieces of pinned memory in turn, so that a step is prepared while one is copied."""

    def __init__(self, runtime: Runtime, num_bytes: int = 1 << 20) -> None:
        """Allocate.

        Args:
            runtime: Of the device.
            num_bytes: To begin with; grows where a step needs more.
        """
        self._runtime = runtime
        self._slots = [
            _Slot(runtime.pinned(num_bytes), runtime.event()) for _ in range(2)
        ]

    def upload(
        self, arrays: Mapping[str, NDArray[Any]], into: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the arrays as tensors on the device, which share one memory.

        Args:
            arrays: int32, int64, uint8, float32 or float64.
            into: uint8 on the device, for graphs: the same arrays then always lie at the same
                addresses. None allocates.
        """
        layout = lay_out(arrays)
        size = max(layout.num_bytes, ALIGNMENT)
        assert into is None or len(into) >= layout.num_bytes, "a graph has room for it"
        slot = self._slots[0]
        self._slots.reverse()
        slot.event.synchronize()  # until then the last copy may still read it
        if len(slot.memory) < size:
            slot.memory = self._runtime.pinned(2 * size)
        fill(slot.memory.numpy(), arrays, layout)
        if into is None:
            into = torch.empty(size, dtype=torch.uint8, device=self._runtime.device)
        target = into[: layout.num_bytes]
        target.copy_(slot.memory[: layout.num_bytes], non_blocking=True)
        slot.event.record()
        return views(into, layout)


class Download:
    """Integers on their way to the host; the device goes on meanwhile."""

    def __init__(self, runtime: Runtime, found: Tensor) -> None:
        """Begin to copy ``found``, ``[n]`` int32 on the device."""
        # Of its own: the host may read it while the next step copies.
        memory = runtime.pinned(max(found.numel() * found.itemsize, ALIGNMENT))
        self._target = memory[: found.numel() * found.itemsize].view(torch.int32)
        self._target.copy_(found, non_blocking=True)
        self._event = runtime.event()
        self._event.record()

    def read(self) -> NDArray[np.int32]:
        """Wait for it, and return ``[n]`` int32."""
        self._event.synchronize()
        numbers: NDArray[np.int32] = self._target.numpy()
        return numbers


def views(memory: Tensor, layout: Layout) -> dict[str, Tensor]:
    """Return the arrays that lie in a memory."""
    return {
        name: memory[place.start : place.start + place.num_bytes]
        .view(_DTYPES[place.dtype])
        .view(place.shape)
        for name, place in layout.places.items()
    }
