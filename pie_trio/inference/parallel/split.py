"""Which part of a model one rank has; plain data, no torch in here.

Of attention a rank has some heads with their KV heads, of an MLP (and of each expert) a part of the
intermediate size, of the head a part of the vocabulary. Embedding, norms and routers are everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.inference.models.config import DecoderConfig

__all__ = ["WHOLE", "Split", "check_split"]


@dataclass(frozen=True, slots=True)
class Split:
    """One rank of several.

    Attributes:
        rank: From 0; rank 0 leads.
        size: How many there are.
    """

    rank: int
    size: int

    def part(self, length: int) -> slice:
        """Return what is this rank's of ``length`` things, which the ranks divide."""
        own = length // self.size
        return slice(self.rank * own, (self.rank + 1) * own)

    def rows(self, blocks: Sequence[int]) -> list[slice]:
        """Return what is this rank's of several blocks, one after the other: a part of each."""
        found: list[slice] = []
        start = 0
        for length in blocks:
            part = self.part(length)
            found.append(slice(start + part.start, start + part.stop))
            start += length
        return found

    def vocabulary(self, vocab_size: int) -> slice:
        """Return the tokens whose logits are this rank's; the last ranks may have fewer."""
        share = -(-vocab_size // self.size)
        start = min(self.rank * share, vocab_size)
        return slice(start, min(start + share, vocab_size))

    def config(self, config: DecoderConfig) -> DecoderConfig:
        """Return what this rank computes, as if it were a model of its own.

        The vocabulary is whole in it, since the embedding is.

        Args:
            config: Of the whole model; :func:`check_split` has found it divisible.
        """
        experts = config.experts
        if experts is not None:
            size = experts.intermediate_size // self.size
            experts = replace(experts, intermediate_size=size)
        return replace(
            config,
            num_heads=config.num_heads // self.size,
            num_kv_heads=config.num_kv_heads // self.size,
            intermediate_size=config.intermediate_size // self.size,
            experts=experts,
        )


WHOLE = Split(0, 1)
"""The only rank there is."""


def check_split(config: DecoderConfig, size: int) -> None:
    """Check whether a model can be split over so many ranks.

    Raises:
        ConfigError: It cannot; the message has the numbers, and those of ranks that would do.
    """
    numbers = {
        "attention heads": config.num_heads,
        "KV heads": config.num_kv_heads,
    }
    if not all(layer.is_sparse for layer in config.layers):
        numbers["intermediate size"] = config.intermediate_size
    if config.experts is not None:
        numbers["intermediate size of an expert"] = config.experts.intermediate_size
    wrong = [f"{what} ({number})" for what, number in numbers.items() if number % size]
    if not wrong:
        return
    common = math.gcd(*numbers.values())
    possible = [str(n) for n in range(1, common + 1) if common % n == 0]
    raise ConfigError(
        f"--tensor-parallel {size} must divide what the ranks share, but of this "
        f"{config.architecture} it does not divide: {', '.join(wrong)}; choose "
        f"{' or '.join(possible)}"
    )
