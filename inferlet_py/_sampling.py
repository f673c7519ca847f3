"""Samplers: how the next token is chosen."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from inferlet_py._checks import check_int, check_real, show
from inferlet_py._errors import BadArgumentError

if TYPE_CHECKING:
    from inferlet_py._host import FilterValues, SamplerValues
    from inferlet_py._processors import Processor

__all__ = [
    "Greedy",
    "MinP",
    "Multinomial",
    "Sampler",
    "TopK",
    "TopP",
    "check_sampler",
]

SEED_BITS = 64
MAX_TEMPERATURE = 1e6
"""The host's own limit: any higher is uniform."""
MAX_TOP_K = 2**31 - 1


@dataclass(frozen=True)
class Sampler:
    """Temperature and filters, applied in the order of the attributes.

    Each filter sees what the one before it left, with the probabilities scaled to a sum of one
    again. A draw depends on the seed and its place in the context alone.

    Attributes:
        temperature: 0 is greedy; everything else is then ignored.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set with at least this probability; 1 keeps all.
        min_p: Drop tokens less likely than this fraction of the most likely; 0 keeps all.
        seed: Makes the draws repeatable; None takes a new one for each generation.
        typical_p: Keep the smallest set with at least this probability, of the tokens whose
            information is closest to the entropy; 1 keeps all.
        epsilon_cutoff: Drop tokens less likely than this, but never the most likely; 0 keeps
            all.
        eta_cutoff: Drop tokens less likely than the smaller one of this and of its root times
            ``exp(-entropy)``, but never the most likely; 0 keeps all.
        xtc_threshold: What ``xtc_probability`` is about.
        xtc_probability: How often, of the tokens at least as likely as ``xtc_threshold``, all
            but the least likely are dropped; 0 is never.

    Raises:
        BadArgumentError: A field has the wrong type or is out of range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    xtc_threshold: float = 0.1
    xtc_probability: float = 0.0

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature, MAX_TEMPERATURE)
        check_int("top_k", self.top_k, MAX_TOP_K)
        check_real("top_p", self.top_p, 1, may_be_zero=False)
        check_real("min_p", self.min_p, 1)
        check_real("typical_p", self.typical_p, 1, may_be_zero=False)
        check_real("epsilon_cutoff", self.epsilon_cutoff, 1)
        check_real("eta_cutoff", self.eta_cutoff, 1)
        check_real("xtc_threshold", self.xtc_threshold, 1)
        check_real("xtc_probability", self.xtc_probability, 1)
        seed = cast("object", self.seed)  # without a type checker it may be anything
        if seed is not None and not isinstance(seed, int):
            raise BadArgumentError(f"seed is an int or None, got {seed!r}")

    def values(self, processor: Processor | None = None) -> SamplerValues:
        """Return what the host takes, with a seed; logits go through a processor before."""
        seed = random.getrandbits(SEED_BITS) if self.seed is None else self.seed
        return (
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            seed % 2**SEED_BITS,
            0 if processor is None else processor.number,
            self._filters(),
        )

    def _filters(self) -> FilterValues | None:
        if (
            self.typical_p == 1
            and not self.epsilon_cutoff
            and not self.eta_cutoff
            and not self.xtc_probability
        ):
            return None
        return (
            self.typical_p,
            self.epsilon_cutoff,
            self.eta_cutoff,
            self.xtc_threshold,
            self.xtc_probability,
        )


def check_sampler(sampler: object) -> Sampler:
    """Return a sampler.

    Raises:
        BadArgumentError: It is none, as ``Greedy`` without its parentheses.
    """
    if isinstance(sampler, Sampler):
        return sampler
    raise BadArgumentError(
        f"a sampler is made by a call, as Greedy() or TopP(0.9), got {show(sampler)}"
    )


def Greedy() -> Sampler:  # noqa: N802  # reads as the kind of sampler that it makes
    """Always take the most likely token."""
    return Sampler(temperature=0.0)


def Multinomial(*, temperature: float = 1.0, seed: int | None = None) -> Sampler:  # noqa: N802
    """Draw from the whole distribution."""
    return Sampler(temperature=temperature, seed=seed)


def TopK(k: int, *, temperature: float = 1.0, seed: int | None = None) -> Sampler:  # noqa: N802
    """Draw from the k most likely tokens."""
    return Sampler(temperature=temperature, top_k=k, seed=seed)


def TopP(p: float, *, temperature: float = 1.0, seed: int | None = None) -> Sampler:  # noqa: N802
    """Draw from the smallest set of tokens with probability ``p`` (nucleus sampling)."""
    return Sampler(temperature=temperature, top_p=p, seed=seed)


def MinP(p: float, *, temperature: float = 1.0, seed: int | None = None) -> Sampler:  # noqa: N802
    """Draw from the tokens at least ``p`` times as likely as the most likely one."""
    return Sampler(temperature=temperature, min_p=p, seed=seed)
