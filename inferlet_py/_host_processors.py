"""``processors.wit`` as the SDK sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = ["PROCESSORS", "ProcessorSpec", "ProcessorsHost"]


@dataclass(frozen=True)
class ProcessorSpec:
    """What changes logits; see ``processors.wit``."""

    grammar: str = ""
    grammar_kind: str = ""
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias: tuple[tuple[int, float], ...] = ()
    typical_p: float = 1.0
    mirostat_tau: float = 0.0
    mirostat_eta: float = 0.0


class ProcessorsHost(Protocol):
    """Grammars, penalties, biases; see ``processors.wit``."""

    def create_processor(
        self, processor: int, model: str, spec: ProcessorSpec
    ) -> int: ...
    def fork_processor(self, source: int, targets: list[int]) -> None: ...
    def accept(self, processor: int, tokens: list[int]) -> int: ...
    def rollback(self, processor: int, count: int) -> None: ...
    def allowed(self, processor: int) -> list[int]: ...
    def destroy_processor(self, processors: list[int]) -> None: ...


def _adapt(processors: Any) -> Adapters:
    def create_processor(processor: int, model: str, spec: ProcessorSpec) -> int:
        made = processors.ProcessorSpec(
            spec.grammar,
            spec.grammar_kind,
            spec.repetition_penalty,
            spec.frequency_penalty,
            spec.presence_penalty,
            list(spec.bias),
            spec.typical_p,
            spec.mirostat_tau,
            spec.mirostat_eta,
        )
        ticket: int = processors.create_processor(processor, model, made)
        return ticket

    return {"create_processor": create_processor}


PROCESSORS = HostInterface("processors", ProcessorsHost, _adapt)
