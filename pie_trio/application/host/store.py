"""``store.wit``: the key-value store of the instance's owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.interface import fallible, interface, waiting
from pie_trio.application.host.receiving import start_request, take_answer
from pie_trio.application.wasm.values import BOOL, STRING, U8, U32, Array, List, Option
from pie_trio.control.receives import message_bytes
from pie_trio.errors import ConfigError, StoreError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.store import Store

__all__ = ["INTERFACE"]

VALUE, FLAG, KEYS = "take-value", "take-flag", "take-keys"
MAX_KEYS = 10_000
"""In one answer."""


def store_get(session: Session, key: str) -> int:
    """Look a key up; return a ticket for its value."""
    owner = session.launch.owner
    return _ask(
        session, VALUE, lambda store: store.get(owner, key), size_of=_bytes_of_value
    )


def store_set(session: Session, key: str, value: NDArray[np.uint8]) -> int:
    """Set a key; return a ticket that is ready once the value is safe."""
    owner, data = session.launch.owner, value.tobytes()
    return _ask(
        session,
        "finish",
        lambda store: store.set(owner, key, data),
        num_bytes=len(data),
    )


def store_delete(session: Session, key: str) -> int:
    """Delete a key; return a ticket for whether it was there."""
    owner = session.launch.owner
    return _ask(session, FLAG, lambda store: store.delete(owner, key))


def store_exists(session: Session, key: str) -> int:
    """Return a ticket for whether a key is there."""
    owner = session.launch.owner
    return _ask(session, FLAG, lambda store: store.exists(owner, key))


def store_list_keys(session: Session, prefix: str, after: str, limit: int) -> int:
    """Return a ticket for a page of keys."""
    owner, most = session.launch.owner, min(limit, MAX_KEYS)
    return _ask(
        session,
        KEYS,
        lambda store: store.list_keys(owner, prefix=prefix, after=after, limit=most),
        size_of=lambda keys: sum(map(message_bytes, keys)),
    )


def take_value(session: Session, ticket: int) -> bytes | Waiting | None:
    """Wait for a value and return it; None if the key has none."""
    return take_answer(session, VALUE, ticket)


def take_flag(session: Session, ticket: int) -> bool | Waiting:
    """Wait for a yes or no."""
    return take_answer(session, FLAG, ticket)


def take_keys(session: Session, ticket: int) -> list[str] | Waiting:
    """Wait for keys."""
    return take_answer(session, KEYS, ticket)


def _bytes_of_value(value: bytes | None) -> int:
    return len(value or b"")


def _ask(
    session: Session,
    kind: str,
    ask: Callable[[Store], Awaitable[Any]],
    *,
    num_bytes: int = 0,
    size_of: Callable[[Any], int] = lambda _: 0,
) -> int:
    """Open the store if nobody has, ask it, and return the ticket."""
    get_store = session.services.get_store
    if get_store is None:
        raise UnsupportedError("this server has no store")

    async def work() -> Any:
        try:
            store = await get_store()
        except ConfigError as error:
            raise StoreError(str(error)) from error
        return await ask(store)

    return start_request(session, kind, work, num_bytes=num_bytes, size_of=size_of)


INTERFACE = interface(
    "store",
    {
        "store-get": fallible(store_get, U32, STRING),
        "store-set": fallible(store_set, U32, STRING, Array(U8)),
        "store-delete": fallible(store_delete, U32, STRING),
        "store-exists": fallible(store_exists, U32, STRING),
        "store-list-keys": fallible(store_list_keys, U32, STRING, STRING, U32),
        "take-value": waiting(take_value, Option(Array(U8)), U32),
        "take-flag": waiting(take_flag, BOOL, U32),
        "take-keys": waiting(take_keys, List(STRING), U32),
    },
)
