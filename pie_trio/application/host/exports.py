"""``exports.wit``: KV pages under names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.host.grants import check_grant
from pie_trio.application.host.interface import HANDLES, fallible, interface
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
from pie_trio.errors import BadArgumentError

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
) -> None:
    """Offer pages under a name."""
    model, table = session.page_table(queue)
    now = trio.current_time()
    if seconds_to_live is not None and not (
        math.isfinite(seconds_to_live) and seconds_to_live > 0
    ):
        raise BadArgumentError(
            f"a time to live is a finite number of seconds above 0, got {seconds_to_live}"
        )
    model.exports.add(
        Export(
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
    )


def unexport_kvpage(session: Session, queue: int, name: str) -> None:
    """Take an export back."""
    session.queues.get(queue).model.exports.remove(session.launch.owner, name)


def import_kvpage(session: Session, queue: int, name: str, pages: list[int]) -> None:
    """Let unused numbers stand for the pages of an export."""
    model, table = session.page_table(queue)
    table.check_unused(pages)
    export = model.exports.take(session.launch.owner, name, len(pages))
    for handle, page, hidden in zip(pages, export.pages, export.hidden, strict=True):
        table.add(handle, page)
        if hidden is not None:
            table.hide(handle, hidden)


def get_export(session: Session, queue: int, name: str) -> tuple[Any, ...]:
    """Return the record ``export-info``."""
    model = session.queues.get(queue).model
    owner = session.launch.owner
    return _describe(model, owner, model.exports.find(owner, name))


def list_exports(session: Session, queue: int, prefix: str) -> list[tuple[Any, ...]]:
    """Return what the inferlet may import."""
    model = session.queues.get(queue).model
    owner = session.launch.owner
    return [
        _describe(model, owner, export)
        for export in model.exports.list_for(owner, prefix)
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
        "export-kvpage": fallible(
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
        "unexport-kvpage": fallible(unexport_kvpage, Unit(), U32, STRING),
        "import-kvpage": fallible(import_kvpage, Unit(), U32, STRING, HANDLES),
        "get-export": fallible(get_export, EXPORT_INFO, U32, STRING),
        "list-exports": fallible(list_exports, List(EXPORT_INFO), U32, STRING),
    },
    types={"permission": PERMISSION, "export-info": EXPORT_INFO},
)
