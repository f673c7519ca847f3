"""``processors.wit``: what changes logits. No engine has the trait yet: all is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import HANDLES, fallible, interface
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import (
    F32,
    STRING,
    U32,
    List,
    Record,
    Tuple,
    Unit,
)
from pie_trio.errors import UnknownHandleError, UnsupportedError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]

PROCESSOR_SPEC = Record(
    grammar=STRING,
    grammar_kind=STRING,
    repetition_penalty=F32,
    frequency_penalty=F32,
    presence_penalty=F32,
    bias=List(Tuple(U32, F32)),
    typical_p=F32,
    mirostat_tau=F32,
    mirostat_eta=F32,
)


def create_processor(session: Session, _number: int, model: str, _spec: Any) -> int:
    """Make a processor, and return a ticket."""
    info = session.model(model).info
    check_trait(info, "processors")
    raise UnsupportedError(f"the engine of {info.name} has no processors")


def fork_processor(_session: Session, source: int, _targets: list[int]) -> None:
    """Let unused numbers go on from where a processor is."""
    raise UnknownHandleError("processor", source)


def accept(_session: Session, number: int, _tokens: list[int]) -> int:
    """Tell a processor which tokens were chosen."""
    raise UnknownHandleError("processor", number)


def rollback(_session: Session, number: int, _count: int) -> None:
    """Take back the latest tokens."""
    raise UnknownHandleError("processor", number)


def allowed(_session: Session, number: int) -> list[int]:
    """Return a bit for each token that is allowed next."""
    raise UnknownHandleError("processor", number)


def destroy_processor(_session: Session, numbers: list[int]) -> None:
    """Give processors back."""
    for number in numbers:
        raise UnknownHandleError("processor", number)


INTERFACE = interface(
    "processors",
    {
        "create-processor": fallible(
            create_processor, U32, U32, STRING, PROCESSOR_SPEC
        ),
        "fork-processor": fallible(fork_processor, Unit(), U32, HANDLES),
        "accept": fallible(accept, U32, U32, HANDLES),
        "rollback": fallible(rollback, Unit(), U32, U32),
        "allowed": fallible(allowed, List(U32), U32),
        "destroy-processor": fallible(destroy_processor, Unit(), HANDLES),
    },
    types={"processor-spec": PROCESSOR_SPEC},
)
