"""``exports.wit``: KV pages under names."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.host.grants import check_grant
from pie_trio.application.host.interface import (
    HANDLES,
    fallible,
    interface,
    waiting,
)
from pie_trio.application.host.prefixes import import_prefix, offer_prefix
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import (
    BOOL,
    F64,
    STRING,
    U8,
    U32,
    U64,
    Array,
    List,
    Option,
    Record,
    Unit,
    Variant,
)
from pie_trio.control.exports import Export, Permission
from pie_trio.errors import BadArgumentError, InferletError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.control.served_model import ServedModel

__all__ = ["INTERFACE"]

PERMISSION = Variant(owner=None, users=List(STRING), published=None)
EXPORT_INFO = Record(
    name=STRING,
    owner=STRING,
    model=STRING,
    num_pages=U32,
    metadata=Array(U8),
    persistent=BOOL,
    expires_in=Option(F64),
    num_imports=U64,
)


def export_kvpage(
    session: Session,
    queue: int,
    pages: list[int],
    name: str,
    persistent: bool,
    permission: tuple[str, Any],
    seconds_to_live: float | None,
    metadata: NDArray[np.uint8],
) -> Waiting | None:
    """Offer pages under a name; wait until that is safe if it outlives the server."""
    model, table = session.page_table(queue)
    now = trio.current_time()
    if seconds_to_live is not None and not (
        math.isfinite(seconds_to_live) and seconds_to_live > 0
    ):
        raise BadArgumentError(
            f"a time to live is a finite number of seconds above 0, got {seconds_to_live}"
        )
    export = Export(
        owner=session.launch.owner,
        name=name,
        pages=[table.get(page) for page in pages],
        hidden=[table.hidden.get(page) for page in pages],
        permission=_permission(session, *permission),
        is_persistent=persistent,
        expires_at=None if seconds_to_live is None else now + seconds_to_live,
        metadata=metadata.tobytes(),
        instance=session.launch.instance_id,
        used_at=now,
    )
    model.shared_exports.make_room(export.owner)
    if model.recorder.records(export):
        return Waiting(partial(model.recorder.add, export))
    model.exports.add(export)
    return None


def unexport_kvpage(session: Session, queue: int, name: str) -> Waiting | None:
    """Take an export back; wait until that is safe if it outlives the server."""
    owner = session.launch.owner
    model = session.queues.get(queue).model.shared_exports.holder(owner, name)
    export = model.exports.find_own(owner, name)
    if model.recorder.records(export):
        return Waiting(partial(model.recorder.remove, export))
    model.exports.drop(export)
    return None


def import_kvpage(
    session: Session, queue: int, name: str, pages: list[int]
) -> Waiting | None:
    """Let unused numbers stand for the pages of an export.

    Those of another replica are copied first: see :mod:`pie_trio.control.shared_exports`.
    """
    model, table = session.page_table(queue)
    shared = model.shared_exports
    asked = session.launch.owner, name, len(pages)

    def add(taken: tuple[Export, list[int]]) -> None:
        export, found = taken
        for handle, page, hidden in zip(pages, found, export.hidden, strict=True):
            table.add(handle, page)
            if hidden is not None:
                table.hide(handle, hidden)

    table.check_unused(pages)
    if (taken := shared.take(*asked)) is not None:
        add(taken)
        return None

    async def bring() -> None:
        while (taken := await shared.bring(*asked) or shared.take(*asked)) is None:
            pass  # another inferlet has copied them, or has replaced the export meanwhile
        try:
            table.check_unused(pages)  # what others of its user took counts as well
        except InferletError:
            for page in taken[1]:
                model.pool.release(page)
            raise
        add(taken)

    return Waiting(bring)


def get_export(session: Session, queue: int, name: str) -> tuple[Any, ...]:
    """Return the record ``export-info``."""
    model = session.queues.get(queue).model
    owner = session.launch.owner
    return _describe(model, owner, model.shared_exports.find(owner, name))


def list_exports(session: Session, queue: int, prefix: str) -> list[tuple[Any, ...]]:
    """Return what the inferlet may import."""
    model = session.queues.get(queue).model
    owner = session.launch.owner
    return [
        _describe(model, owner, export)
        for export in model.shared_exports.list_for(owner, prefix)
    ]


def _permission(session: Session, case: str, users: Any) -> Permission:
    if case == "users":
        return Permission(users=frozenset(users))
    if case == "published":
        check_grant(
            session, "publish", "an export for everybody, not for users by name,"
        )
        return Permission(is_published=True)
    return Permission()


def _describe(model: ServedModel, owner: str, export: Export) -> tuple[Any, ...]:
    left = None
    if export.expires_at is not None:
        left = max(0.0, export.expires_at - trio.current_time())
    return (
        model.exports.name_for(owner, export),
        export.owner,
        model.info.name,
        len(export.pages),
        export.metadata,
        export.is_persistent,
        left,
        export.num_imports,
    )


INTERFACE = interface(
    "exports",
    {
        "export-kvpage": waiting(
            export_kvpage,
            Unit(),
            U32,
            HANDLES,
            STRING,
            BOOL,
            PERMISSION,
            Option(F64),
            Array(U8),
        ),
        "offer-prefix": fallible(offer_prefix, Unit(), U32, HANDLES, List(STRING)),
        "import-prefix": waiting(import_prefix, U32, U32, List(STRING), HANDLES),
        "unexport-kvpage": waiting(unexport_kvpage, Unit(), U32, STRING),
        "import-kvpage": waiting(import_kvpage, Unit(), U32, STRING, HANDLES),
        "get-export": fallible(get_export, EXPORT_INFO, U32, STRING),
        "list-exports": fallible(list_exports, List(EXPORT_INFO), U32, STRING),
    },
    types={"permission": PERMISSION, "export-info": EXPORT_INFO},
)
