"""``output-text.wit``: distributions out of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.application.host.forward import OUTPUT, read_outputs
from pie_trio.application.host.in_flight import (
    check_room,
    request_bytes,
    result_bytes,
    submit,
)
from pie_trio.application.host.interface import HANDLES, fallible, interface
from pie_trio.application.host.traits import check_trait
from pie_trio.application.wasm.values import U32, List
from pie_trio.control.commands import Kind
from pie_trio.control.forwards import check_outputs
from pie_trio.engine_api import OutputSpec, ProjectRequest
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.application.host.session import Session
    from pie_trio.control.processors import Processor

__all__ = ["INTERFACE"]


def get_next_dist(session: Session, queue: int, embed: int, k: int) -> int:
    """Enqueue the next-token distribution of an embed, and return its ticket."""
    if k < 1:
        raise BadArgumentError(
            "a distribution has at least one entry: give a k above 0"
        )
    spec = OutputSpec(np.zeros(1, np.int32), top_k=k)
    return _project(session, queue, [embed], (spec,))


def project(
    session: Session, queue: int, embeds: list[int], outputs: Sequence[Sequence[Any]]
) -> int:
    """Enqueue outputs of embeds that forwards wrote, and return its ticket."""
    model = session.queues.get(queue).model
    processors: list[Processor] = []
    specs = read_outputs(session, outputs, model, processors)
    return _project(session, queue, embeds, specs, processors)


def _project(
    session: Session,
    queue: int,
    handles: list[int],
    outputs: tuple[OutputSpec, ...],
    processors: Sequence[Processor] = (),
) -> int:
    found = session.queues.get(queue)
    model, table = session.embed_table(queue)
    check_trait(model.info, "output-text")
    if not handles or not outputs:
        raise BadArgumentError("a projection has at least one embed and one output")
    embeds = [table.get(handle) for handle in handles]
    for handle, embed in zip(handles, embeds, strict=True):
        if embed.slot < 0:
            raise BadArgumentError(
                f"embed {handle} holds no hidden state: name it as an output of a forward first"
            )
    check_outputs(outputs, len(embeds), model.info, model.config)
    num_bytes = request_bytes(0, len(handles)) + result_bytes(outputs, model.info)
    check_room(session, num_bytes)
    request = ProjectRequest(
        np.array([embed.slot for embed in embeds], np.int32),
        np.array([embed.position for embed in embeds], np.int32),
        outputs,
    )
    return submit(
        session,
        found,
        Kind.PROJECT,
        writes=(),
        project=request,
        embeds=tuple({embed.slot for embed in embeds}),
        processors=processors,
        num_bytes=num_bytes,
    )


INTERFACE = interface(
    "output-text",
    {
        "get-next-dist": fallible(get_next_dist, U32, U32, U32, U32),
        "project": fallible(project, U32, U32, HANDLES, List(OUTPUT)),
    },
)
