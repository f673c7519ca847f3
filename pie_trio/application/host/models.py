"""``models.wit``: what the server's models are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import answering, fallible, interface
from pie_trio.application.wasm.values import STRING, U32, List, Record

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]

MODEL_INFO = Record(
    name=STRING,
    traits=List(STRING),
    description=STRING,
    version=STRING,
    license=STRING,
    prompt_template=STRING,
    vocab_size=U32,
    max_positions=U32,
    eos_tokens=List(U32),
    kv_page_size=U32,
    max_forward_tokens=U32,
    max_distribution=U32,
    hidden_size=U32,
    service_id=STRING,
)


def available_models(session: Session) -> list[str]:
    """Return the names of all models, the default one first."""
    return list(session.services.models)


def available_traits(session: Session, name: str) -> list[str]:
    """Return the traits of a model."""
    return list(session.model(name).info.traits)


def models_with_traits(session: Session, traits: list[str]) -> list[str]:
    """Return the names of the models that have all of these traits."""
    wanted = set(traits)
    return [
        name
        for name, model in session.services.models.items()
        if wanted <= set(model.info.traits)
    ]


def get_model(session: Session, name: str) -> tuple[Any, ...]:
    """Return the record ``model-info``."""
    model = session.model(name)
    info = model.info
    return (
        info.name,
        list(info.traits),
        info.description,
        info.version,
        info.license,
        info.prompt_template,
        info.vocab_size,
        info.max_positions,
        list(info.eos_token_ids),
        info.page_size,
        model.config.max_forward_tokens,
        min(model.config.max_distribution, info.vocab_size),
        info.hidden_size,
        info.name,
    )


INTERFACE = interface(
    "models",
    {
        "available-models": answering(available_models, List(STRING)),
        "available-traits": fallible(available_traits, List(STRING), STRING),
        "models-with-traits": answering(models_with_traits, List(STRING), List(STRING)),
        "get-model": fallible(get_model, MODEL_INFO, STRING),
    },
    types={"model-info": MODEL_INFO},
)
