"""``models.wit`` as the SDK sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface, never_fails

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = ["MODELS", "ModelInfo", "ModelsHost"]


@dataclass(frozen=True)
class ModelInfo:
    """What a model is; see ``models.wit``."""

    name: str
    traits: tuple[str, ...]
    description: str
    version: str
    license: str
    prompt_template: str
    vocab_size: int
    max_positions: int
    eos_tokens: tuple[int, ...]
    kv_page_size: int
    max_forward_tokens: int
    max_distribution: int
    hidden_size: int
    service_id: str


class ModelsHost(Protocol):
    """The server's models; see ``models.wit``."""

    @never_fails
    def available_models(self) -> list[str]: ...
    def available_traits(self, name: str) -> list[str]: ...
    @never_fails
    def models_with_traits(self, traits: list[str]) -> list[str]: ...
    def get_model(self, name: str) -> ModelInfo: ...


def _adapt(models: Any) -> Adapters:
    def get_model(name: str) -> ModelInfo:
        info = models.get_model(name)
        return ModelInfo(
            name=info.name,
            traits=tuple(info.traits),
            description=info.description,
            version=info.version,
            license=info.license,
            prompt_template=info.prompt_template,
            vocab_size=info.vocab_size,
            max_positions=info.max_positions,
            eos_tokens=tuple(info.eos_tokens),
            kv_page_size=info.kv_page_size,
            max_forward_tokens=info.max_forward_tokens,
            max_distribution=info.max_distribution,
            hidden_size=info.hidden_size,
            service_id=info.service_id,
        )

    return {"get_model": get_model}


MODELS = HostInterface("models", ModelsHost, _adapt)
