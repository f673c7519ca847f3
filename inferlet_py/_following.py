"""The last forward of a context: the next one is often the same, a token further on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from inferlet_py._errors import NotFoundError
from inferlet_py._host import get_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._host import OutputResult, SamplerValues
    from inferlet_py._host_forward import ExtraResults
    from inferlet_py._processors import Processor
    from inferlet_py._sampling import Sampler

__all__ = ["LastForward", "SamplerMemory", "follow", "take_result"]


class LastForward(NamedTuple):
    """What was asked for.

    Attributes:
        ticket: Of the forward.
        end: Behind its last slot.
        num_pages: Pages that the host knows of.
        sampler: For its last token.
        top: As in :class:`OutputValues`.
        extras: As in :class:`OutputValues`.
    """

    ticket: int
    end: int
    num_pages: int
    sampler: SamplerValues | None
    top: int
    extras: tuple[str, ...]


@dataclass(slots=True)
class Sampled:
    """The result of an output that asked for a token and nothing else."""

    tokens: list[int]
    top_ids: list[int]
    top_probs: list[float]
    extras: ExtraResults | None = None


class SamplerMemory:
    """Keeps what a sampler became, as long as one forward follows the other.

    A sampler without a seed draws anew in each place all the same: a draw depends on the place.
    """

    def __init__(self) -> None:
        self._sampler: Sampler | None = None
        self._processor: Processor | None = None
        self._values: SamplerValues | None = None

    def values(
        self, sampler: Sampler, processor: Processor | None, *, is_next: bool
    ) -> SamplerValues:
        """Return what the host takes: the same as before if it is the next place."""
        if (
            self._values is None
            or not is_next
            or sampler is not self._sampler
            or processor is not self._processor
        ):
            self._sampler, self._processor = sampler, processor
            self._values = sampler.values(processor)
        return self._values


def follow(
    last: LastForward | None,
    start: int,
    tokens: Sequence[int],
    pages: Sequence[int],
    output: tuple[SamplerValues | None, int, tuple[str, ...]],
) -> int | None:
    """Enqueue the forward of these tokens if it goes on where the last one ended.

    Returns:
        Its ticket; None if it is to be described in full.
    """
    if last is None or last.end != start or last[3:] != output:
        return None
    try:
        return get_host().next_forward(
            last.ticket, list(tokens), list(pages[last.num_pages :])
        )
    except NotFoundError:
        return None  # the host has forgotten it


def take_result(ticket: int, *, is_sampled_alone: bool) -> OutputResult:
    """Return the result of a ready forward with one output."""
    if is_sampled_alone:
        return Sampled(get_host().take_tokens(ticket), [], [])
    (result,) = get_host().take_forward(ticket)
    return result
