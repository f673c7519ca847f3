"""``forward.wit``, ``input-text.wit`` and ``output-text.wit`` as the SDK sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._binding import Adapters

__all__ = [
    "EXTRAS",
    "FORWARD",
    "INPUT_IMAGE",
    "INPUT_TEXT",
    "OUTPUT_TEXT",
    "ExtraResults",
    "FilterValues",
    "ForwardHost",
    "InputImageHost",
    "InputTextHost",
    "OutputResult",
    "OutputTextHost",
    "OutputValues",
    "SamplerValues",
    "make_sampler",
]

FilterValues = tuple[float, float, float, float, float]
"""Typical-p, epsilon and eta cutoff, XTC's threshold and probability: the WIT record ``filters``."""

SamplerValues = tuple[float, int, float, float, int, int, FilterValues | None]
"""Temperature, top-k, top-p, min-p, seed, processor, filters: the WIT record ``sampler``."""

EXTRAS = ("logprobs", "entropy", "logits", "hidden")


@dataclass(frozen=True)
class OutputValues:
    """What to return for some rows: the WIT record ``output``.

    Attributes:
        rows: Which tokens, ascending.
        sampler: Sample a token for each.
        top: So many of the most likely tokens for each.
        extras: Some of ``EXTRAS``.
    """

    rows: list[int]
    sampler: SamplerValues | None = None
    top: int = 0
    extras: tuple[str, ...] = ()


class OutputResult(Protocol):
    """What an output returned: the WIT record ``output-result``."""

    tokens: list[int]
    top_ids: list[int]
    top_probs: list[float]
    extras: ExtraResults | None


class ExtraResults(Protocol):
    """What its extras returned: the WIT record ``extra-results``."""

    logprobs: list[float]
    entropy: list[float]
    logits: list[float]
    hidden: list[float]


class ForwardHost(Protocol):
    """Run the model; see ``forward.wit``."""

    def forward_text(
        self,
        queue: int,
        tokens: list[int],
        positions: list[int],
        pages: list[int],
        start: int,
        mask: list[list[int]] | None,
        outputs: Sequence[OutputValues],
        adapter: str = "",
    ) -> int: ...
    def take_forward(self, ticket: int) -> list[OutputResult]: ...
    def next_forward(self, after: int, tokens: list[int], pages: list[int]) -> int: ...
    def take_tokens(self, ticket: int) -> list[int]: ...
    def forward(
        self,
        queue: int,
        input_pages: list[int],
        inputs: list[int],
        output_pages: list[int],
        output_embeds: list[int],
        mask: list[list[int]] | None,
    ) -> int: ...
    def forward_with_adapter(
        self,
        queue: int,
        adapter: str,
        input_pages: list[int],
        inputs: list[int],
        output_pages: list[int],
        output_embeds: list[int],
        mask: list[list[int]] | None,
    ) -> int: ...
    def get_all_adapters(self, queue: int) -> list[str]: ...
    def mask_kvpage(self, queue: int, page: int, hidden: list[bool]) -> None: ...


class InputTextHost(Protocol):
    """Text into embeds; see ``input-text.wit``."""

    def embed_txt(
        self, queue: int, tokens: list[int], positions: list[int], embeds: list[int]
    ) -> None: ...


class InputImageHost(Protocol):
    """Images into embeds; see ``input-image.wit``."""

    def num_embs_needed(self, queue: int, width: int, height: int) -> int: ...
    def embed_img(
        self, queue: int, image: bytes, position: int, embeds: list[int]
    ) -> int: ...


class OutputTextHost(Protocol):
    """Distributions of embeds; see ``output-text.wit``."""

    def get_next_dist(self, queue: int, embed: int, k: int) -> int: ...
    def project(
        self, queue: int, embeds: list[int], outputs: Sequence[OutputValues]
    ) -> int: ...


def make_sampler(forward: Any, values: SamplerValues) -> Any:
    """Return the WIT record ``sampler``; ``forward`` is the module of that interface."""
    *plain, filters = values
    made = None if filters is None else forward.Filters(*filters)
    return forward.Sampler(*plain, made)


def _make_outputs(forward: Any, outputs: Sequence[OutputValues]) -> list[Any]:
    nothing = forward.Extras(0)
    return [
        forward.Output(
            output.rows,
            None if output.sampler is None else make_sampler(forward, output.sampler),
            output.top,
            _make_extras(forward, output.extras) if output.extras else nothing,
        )
        for output in outputs
    ]


def _make_extras(forward: Any, names: Sequence[str]) -> Any:
    extras = forward.Extras(0)
    for name in names:
        extras |= forward.Extras[name.upper()]
    return extras


def _adapt_forward(forward: Any) -> Adapters:
    make_request = forward.ForwardRequest

    def forward_text(
        queue: int,
        tokens: list[int],
        positions: list[int],
        pages: list[int],
        start: int,
        mask: list[list[int]] | None,
        outputs: Sequence[OutputValues],
        adapter: str = "",
    ) -> int:
        made = _make_outputs(forward, outputs)
        ticket: int = forward.forward_text(
            queue, make_request(tokens, positions, pages, start, mask, made, adapter)
        )
        return ticket

    return {"forward_text": forward_text}


def _adapt_output_text(output_text: Any) -> Adapters:
    def project(queue: int, embeds: list[int], outputs: Sequence[OutputValues]) -> int:
        made = _make_outputs(output_text.forward, outputs)
        ticket: int = output_text.project(queue, embeds, made)
        return ticket

    return {"project": project}


FORWARD = HostInterface("forward", ForwardHost, _adapt_forward)
INPUT_TEXT = HostInterface("input-text", InputTextHost)
INPUT_IMAGE = HostInterface("input-image", InputImageHost)
OUTPUT_TEXT = HostInterface("output-text", OutputTextHost, _adapt_output_text)
