"""Adapters on a GPU: two kernels a linear layer, however many adapters a batch has."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np

from pie_trio.inference.adapters.targets import LinearName
from pie_trio.inference.models.mlp import GatedMlp
from pie_trio.inference.paging.tiles import tile_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.inference.adapters.lowrank import Adapter
    from pie_trio.inference.kernels.protocol import LinearLayer
    from pie_trio.inference.models.decoder import Decoder, DecoderLayer

__all__ = [
    "AdapterPlans",
    "GroupedAdapters",
    "LinearTables",
    "LoraKernels",
    "Tiles",
    "find_lora",
]

LINEARS: tuple[LinearName, ...] = get_args(LinearName)
MAX_PARTS = 3
"""Query, key and value."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """The rows with adapters, on the device: see :class:`~..paging.tiles.RowTiles`."""

    order: Tensor
    starts: Tensor
    sizes: Tensor
    adapters: Tensor


@dataclass(frozen=True, slots=True)
class LinearTables:
    """What the ``A`` adapters of a batch add to one linear layer.

    Attributes:
        pointers: ``[A, 1 + MAX_PARTS]`` int64 on the device, addresses of weights: of the factor
            from the inputs to all ranks, ``[ranks, num_inputs]``, and of those from each part's
            ranks to its outputs, ``[num_outputs, rank]``; all contiguous.
        numbers: ``[A, 1 + 4 * MAX_PARTS]`` int32 on the device: how many ranks all parts have;
            then of each part its first rank, its ranks, its first output, and its outputs. Zeros
            where there is none.
        max_ranks: Of all adapters.
        max_parts: Of an adapter.
        max_outputs: Of a part.
    """

    pointers: Tensor
    numbers: Tensor
    max_ranks: int
    max_parts: int
    max_outputs: int


class LoraKernels(Protocol):
    """The two products; rows are those of tiles."""

    @property
    def block_rows(self) -> int:
        """Rows of a tile at most."""
        ...

    def shrink(
        self, inputs: Tensor, tables: LinearTables, tiles: Tiles, low: Tensor
    ) -> None:
        """Multiply by the factors from the inputs to the ranks.

        Args:
            inputs: ``[num_rows, num_inputs]``, whose rows lie together.
            tables: Of the linear layer.
            tiles: Of the batch.
            low: ``[n, max_ranks]`` in the order of the tiles, written.
        """
        ...

    def expand(
        self, low: Tensor, tables: LinearTables, tiles: Tiles, outputs: Tensor
    ) -> None:
        """Add the products with the factors from the ranks to the outputs.

        Args:
            low: What :meth:`shrink` has written.
            tables: Of the linear layer.
            tiles: Of the batch.
            outputs: ``[num_rows, num_outputs]``, whose rows lie together.
        """
        ...


def find_lora(device: torch.device) -> LoraKernels | None:
    """Return the kernels for a GPU; None without one, or where Triton is not installed."""
    if device.type != "cuda" or find_spec("triton") is None:
        return None
    from pie_trio.inference.gpu.lora_kernels import TritonLora

    return TritonLora()


@dataclass(frozen=True, slots=True)
class _Tables:
    """The rows of :class:`LinearTables` of one adapter, for each layer's linear layers in turn."""

    adapter: Adapter
    pointers: NDArray[np.int64]
    numbers: NDArray[np.int32]


class AdapterPlans:
    """Plans batches with adapters, and keeps what it found out about each adapter."""

    def __init__(self, kernels: LoraKernels) -> None:
        """Use kernels."""
        self._kernels = kernels
        self._tables: dict[str, _Tables] = {}

    def prepare(
        self,
        names: Sequence[str],
        query_lens: NDArray[np.int32],
        adapters: Mapping[str, Adapter],
    ) -> GroupedAdapters:
        """Make the arrays of a batch.

        Args:
            names: Of the adapter of each request; "" for none.
            query_lens: ``[B]`` int32.
            adapters: Those of the batch, at least one.
        """
        # A name may come back with other weights in another place.
        self._tables = {
            name: found
            for name, found in self._tables.items()
            if name not in adapters or found.adapter is adapters[name]
        }
        for name, adapter in adapters.items():
            if name not in self._tables:
                self._tables[name] = _tables_of(adapter)
        tables = [self._tables[name] for name in adapters]
        numbers = {name: index for index, name in enumerate(adapters)}
        owners = [numbers.get(name, -1) for name in names]
        tiles = tile_rows(owners, query_lens, self._kernels.block_rows)
        return GroupedAdapters(
            self._kernels,
            {
                "lora_order": tiles.order,
                "lora_starts": tiles.starts,
                "lora_sizes": tiles.sizes,
                "lora_adapters": tiles.adapters,
                "lora_pointers": np.stack([t.pointers for t in tables], axis=1),
                "lora_numbers": np.stack([t.numbers for t in tables], axis=1),
            },
        )


@dataclass(frozen=True, slots=True)
class GroupedAdapters:
    """The adapters of one batch.

    Attributes:
        kernels: Compute.
        arrays: For the device.
    """

    kernels: LoraKernels
    arrays: Mapping[str, NDArray[Any]]

    def adapt(self, model: Decoder, tensors: Mapping[str, Tensor]) -> Decoder:
        """Return a decoder for the batch.

        Args:
            model: As it was loaded.
            tensors: :attr:`arrays` on the device.
        """
        tiles = Tiles(
            tensors["lora_order"],
            tensors["lora_starts"],
            tensors["lora_sizes"],
            tensors["lora_adapters"],
        )
        numbers = self.arrays["lora_numbers"]  # [layers * linears, A, ...]
        of_parts = numbers[:, :, 1:].reshape(*numbers.shape[:2], MAX_PARTS, 4)
        ranks: list[int] = numbers[:, :, 0].max(axis=1).tolist()
        outputs: list[int] = of_parts[..., 3].max(axis=(1, 2)).tolist()
        parts: list[int] = (of_parts[..., 3] > 0).sum(axis=2).max(axis=1).tolist()

        def linear(layer: int, name: LinearName, base: LinearLayer) -> LinearLayer:
            place = layer * len(LINEARS) + LINEARS.index(name)
            if not ranks[place]:
                return base
            tables = LinearTables(
                tensors["lora_pointers"][place],
                tensors["lora_numbers"][place],
                ranks[place],
                parts[place],
                outputs[place],
            )
            return GroupedLinear(base, self.kernels, tables, tiles)

        def adapted(index: int, layer: DecoderLayer) -> DecoderLayer:
            mlp = layer.mlp
            if isinstance(mlp, GatedMlp):
                mlp = replace(
                    mlp,
                    gate_up=linear(index, "gate_up", mlp.gate_up),
                    down=linear(index, "down", mlp.down),
                )
            output = linear(index, "attention_output", layer.attention_output)
            return replace(
                layer,
                qkv=linear(index, "qkv", layer.qkv),
                attention_output=output,
                mlp=mlp,
            )

        layers = tuple(adapted(i, layer) for i, layer in enumerate(model.layers))
        return replace(model, layers=layers)


@dataclass(frozen=True, slots=True)
class GroupedLinear:
    """A linear layer with adapters for some rows; compare :class:`~..adapters.lowrank.AdaptedLinear`."""

    base: LinearLayer
    kernels: LoraKernels
    tables: LinearTables
    tiles: Tiles

    @property
    def weight(self) -> Tensor:
        """That of the model's layer."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """That of the model's layer."""
        return self.base.bias

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return ``[num_rows, num_outputs]`` for ``[num_rows, num_inputs]``."""
        outputs = self.base(inputs)
        inputs = inputs.contiguous()
        low = inputs.new_empty(len(self.tiles.order), self.tables.max_ranks)
        self.kernels.shrink(inputs, self.tables, self.tiles, low)
        self.kernels.expand(low, self.tables, self.tiles, outputs)
        return outputs


def _tables_of(adapter: Adapter) -> _Tables:
    count = len(adapter.layers) * len(LINEARS)
    pointers = np.zeros((count, 1 + MAX_PARTS), np.int64)
    numbers = np.zeros((count, 1 + 4 * MAX_PARTS), np.int32)
    for index, layer in enumerate(adapter.layers):
        for name, low_rank in layer.items():
            place = index * len(LINEARS) + LINEARS.index(name)
            ranks = len(low_rank.down.weight)
            pointers[place, 0] = _address(low_rank.down)
            numbers[place, 0] = ranks
            for column, part in enumerate(low_rank.parts):
                num_outputs = len(part.up.weight)
                pointers[place, 1 + column] = _address(part.up)
                numbers[place, 1 + 4 * column : 5 + 4 * column] = (
                    part.first_rank,
                    part.rank,
                    part.start,
                    num_outputs,
                )
    return _Tables(adapter, pointers, numbers)


def _address(linear: LinearLayer) -> int:
    assert linear.weight.is_contiguous(), "kernels count on it, and loading sees to it"
    return linear.weight.data_ptr()
