"""All arrays of a step in one piece of memory, so that they cross to the device in one copy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["ALIGNMENT", "Layout", "Place", "fill", "lay_out"]

ALIGNMENT = 16
"""Bytes; kernels read vectors of that size."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one array lies: its first byte, its bytes, and what they are."""

    start: int
    num_bytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The places of arrays by name, and the bytes that all of them take."""

    places: Mapping[str, Place]
    num_bytes: int


def lay_out(arrays: Mapping[str, NDArray[Any]]) -> Layout:
    """Return where each array goes, in their order."""
    places: dict[str, Place] = {}
    end = 0
    for name, array in arrays.items():
        places[name] = Place(end, array.nbytes, array.dtype, array.shape)
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return Layout(places, end)


def fill(
    memory: NDArray[np.uint8], arrays: Mapping[str, NDArray[Any]], layout: Layout
) -> None:
    """Write the arrays where ``layout`` says. ``memory`` is large enough and aligned."""
    for name, array in arrays.items():
        place = layout.places[name]
        target = memory[place.start : place.start + place.num_bytes].view(place.dtype)
        target.reshape(place.shape)[...] = array
