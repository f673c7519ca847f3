"""What adapters add to a decoder: the same layers, with products of low rank on some rows.

A batch without adapters runs the decoder as it was loaded; only one with them gets layers of its
own, which share all weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from pie_trio.inference.models.mlp import GatedMlp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from pie_trio.inference.adapters.targets import LinearName
    from pie_trio.inference.kernels.protocol import LinearLayer
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.decoder import Decoder, DecoderLayer

__all__ = [
    "AdaptedLinear",
    "AdaptedRows",
    "Adapter",
    "LowRank",
    "Part",
    "adapt",
    "group_rows",
]


@dataclass(frozen=True, slots=True)
class Part:
    """The second factor of one product.

    Attributes:
        first_rank: Where its own numbers begin among those of :attr:`LowRank.down`.
        rank: How many they are.
        start: The first output of the linear layer that it changes.
        up: From ``rank`` to the outputs that it changes; the scale is in its weights.
    """

    first_rank: int
    rank: int
    start: int
    up: LinearLayer


@dataclass(frozen=True, slots=True)
class LowRank:
    """What one adapter adds to one linear layer, which may be several packed into one.

    Attributes:
        down: From the inputs to the ranks of all parts, one after the other.
        parts: At least one.
    """

    down: LinearLayer
    parts: tuple[Part, ...]

    def add_to(self, outputs: Tensor, inputs: Tensor, rows: Tensor | None) -> None:
        """Add the products of some rows to the outputs, in place.

        Args:
            outputs: ``[num_rows, num_outputs]``.
            inputs: ``[num_rows, num_inputs]``.
            rows: ``[n]`` int64, different ones; None for all.
        """
        own = inputs if rows is None else inputs.index_select(0, rows)
        low = self.down(own)  # [n, ranks]
        for part in self.parts:
            factor = low
            if part.rank < low.shape[1]:
                factor = low[:, part.first_rank : part.first_rank + part.rank]
            added = part.up(factor)
            changed = outputs[:, part.start : part.start + added.shape[1]]
            if rows is None:
                changed.add_(added)
            else:
                changed.index_add_(0, rows, added)


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter of a decoder.

    Attributes:
        layers: What it adds to the linear layers of each of the decoder's layers.
    """

    layers: tuple[Mapping[LinearName, LowRank], ...]


@dataclass(frozen=True, slots=True)
class AdaptedRows:
    """The rows of a batch that one adapter is for.

    Attributes:
        adapter: The adapter.
        rows: ``[n]`` int64, ascending; None for all rows of the batch.
    """

    adapter: Adapter
    rows: Tensor | None


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """A linear layer with adapters for some rows.

    Attributes:
        base: The layer of the model.
        added: What is added to it, and to which rows; different ones.
    """

    base: LinearLayer
    added: tuple[tuple[LowRank, Tensor | None], ...]

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
        for low_rank, rows in self.added:
            low_rank.add_to(outputs, inputs, rows)
        return outputs


def group_rows(
    names: Sequence[str],
    metadata: BatchMetadata,
    adapters: Mapping[str, Adapter],
    device: torch.device | None = None,
) -> list[AdaptedRows]:
    """Group the new tokens of a batch by their adapters.

    Args:
        names: Of the adapter of each forward; "" for none.
        metadata: Of the batch.
        adapters: All that are named.
        device: Of the model; None for the CPU.
    """
    groups: list[AdaptedRows] = []
    for name, adapter in adapters.items():
        is_own = np.array([other == name for other in names])
        rows = np.flatnonzero(is_own.repeat(metadata.query_lens))
        is_all = len(rows) == len(metadata.token_ids)
        own = None if is_all else torch.as_tensor(rows, device=device)
        groups.append(AdaptedRows(adapter, own))
    return groups


def adapt(model: Decoder, adapted: Sequence[AdaptedRows]) -> Decoder:
    """Return a decoder for one batch, some rows of which have adapters."""
    layers = tuple(
        _adapt_layer(layer, [(a.adapter.layers[index], a.rows) for a in adapted])
        for index, layer in enumerate(model.layers)
    )
    return replace(model, layers=layers)


def _adapt_layer(
    layer: DecoderLayer,
    adapted: Sequence[tuple[Mapping[LinearName, LowRank], Tensor | None]],
) -> DecoderLayer:
    def linear(name: LinearName, base: LinearLayer) -> LinearLayer:
        added = tuple((a[name], rows) for a, rows in adapted if name in a)
        return AdaptedLinear(base, added) if added else base

    mlp = layer.mlp
    if isinstance(mlp, GatedMlp):
        gate_up, down = linear("gate_up", mlp.gate_up), linear("down", mlp.down)
        mlp = replace(mlp, gate_up=gate_up, down=down)
    return replace(
        layer,
        qkv=linear("qkv", layer.qkv),
        attention_output=linear("attention_output", layer.attention_output),
        mlp=mlp,
    )
