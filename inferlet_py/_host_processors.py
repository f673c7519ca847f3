"""``processors.wit`` as the SDK sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferlet_py._binding import Adapters

__all__ = ["PROCESSORS", "DryValues", "ProcessorSpec", "ProcessorsHost"]

DryValues = tuple[float, float, int, list[int]]
"""Multiplier, base, allowed length, breakers: the WIT record ``dry``."""


@dataclass(frozen=True)
class ProcessorSpec:
    """What changes logits: the WIT record ``processor-spec``.

    Attributes:
        grammar: Its kind, as ``json-schema``, and its text.
        mirostat: Target surprise and learning rate.
    """

    grammar: tuple[str, str] | None = None
    bias: list[tuple[int, float]] = field(default_factory=list[tuple[int, float]])
    allowed_tokens: list[int] | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry: DryValues | None = None
    window: int = 0
    prompt: list[int] = field(default_factory=list[int])
    mirostat: tuple[float, float] | None = None


class ProcessorsHost(Protocol):
    """Grammars, penalties, biases; see ``processors.wit``."""

    def create_processor(
        self, processor: int, model: str, spec: ProcessorSpec
    ) -> int: ...
    def fork_processor(self, source: int, targets: list[int]) -> None: ...
    def accept(self, processor: int, tokens: list[int]) -> int: ...
    def rollback(self, processor: int, count: int) -> None: ...
    def allowed(self, processor: int) -> Sequence[int]: ...
    def has_ended(self, processor: int) -> bool: ...
    def destroy_processor(self, processors: list[int]) -> None: ...


def _adapt(processors: Any) -> Adapters:
    def create_processor(processor: int, model: str, spec: ProcessorSpec) -> int:
        grammar = None
        if spec.grammar is not None:
            kind, text = spec.grammar
            name = kind.upper().replace("-", "_")
            grammar = processors.Grammar(processors.GrammarKind[name], text)
        made = processors.ProcessorSpec(
            grammar,
            spec.bias,
            spec.allowed_tokens,
            spec.repetition_penalty,
            spec.presence_penalty,
            spec.frequency_penalty,
            None if spec.dry is None else processors.Dry(*spec.dry),
            spec.window,
            spec.prompt,
            None if spec.mirostat is None else processors.Mirostat(*spec.mirostat),
        )
        ticket: int = processors.create_processor(processor, model, made)
        return ticket

    return {"create_processor": create_processor}


PROCESSORS = HostInterface("processors", ProcessorsHost, _adapt)
