"""``input-image.wit``: images into the model. No engine has the trait yet: all is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import HANDLES, fallible, interface
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import U8, U32, Array
from pie_trio.errors import UnsupportedError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]


def num_embs_needed(session: Session, queue: int, _width: int, _height: int) -> int:
    """Return how many embeds an image of this size takes."""
    return _refuse(session, queue)


def embed_img(
    session: Session, queue: int, _image: Any, _position: int, _embeds: list[int]
) -> int:
    """Enqueue the encoding of an image, and return its ticket."""
    return _refuse(session, queue)


def _refuse(session: Session, queue: int) -> int:
    info = session.queues.get(queue).model.info
    check_trait(info, "input-image")
    raise UnsupportedError(f"the engine of {info.name} cannot encode images")


INTERFACE = interface(
    "input-image",
    {
        "num-embs-needed": fallible(num_embs_needed, U32, U32, U32, U32),
        "embed-img": fallible(embed_img, U32, U32, Array(U8), U32, HANDLES),
    },
)
