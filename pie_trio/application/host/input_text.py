"""``input-text.wit``: text into the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.application.host.interface import HANDLES, fallible, interface
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import U32, Unit
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

__all__ = ["INTERFACE"]

MAX_POSITION = int(np.iinfo(np.int32).max)


def embed_txt(
    session: Session,
    queue: int,
    tokens: list[int],
    positions: list[int],
    embeds: list[int],
) -> None:
    """Put tokens with their positions into embeds.

    It needs no step of the device: the forward that takes them looks their vectors up.
    """
    model, table = session.embed_table(queue)
    check_trait(model.info, "input-text")
    if not len(tokens) == len(positions) == len(embeds):
        raise BadArgumentError(
            f"each token needs a position and an embed: {len(tokens)} tokens, "
            f"{len(positions)} positions, {len(embeds)} embeds"
        )
    for token in tokens:
        if token >= model.info.vocab_size:
            raise BadArgumentError(
                f"token {token} is not below {model.info.vocab_size}, the model's vocabulary"
            )
    for position in positions:
        if position >= MAX_POSITION:
            raise BadArgumentError(
                f"position {position} is not below {MAX_POSITION}, the largest position"
            )
    found = [table.get(embed) for embed in embeds]
    for embed, token, position in zip(found, tokens, positions, strict=True):
        if embed.slot >= 0:
            model.embeds.release(embed.slot)
        embed.token, embed.slot, embed.position = token, -1, position


INTERFACE = interface(
    "input-text",
    {"embed-txt": fallible(embed_txt, Unit(), U32, HANDLES, HANDLES, HANDLES)},
)
