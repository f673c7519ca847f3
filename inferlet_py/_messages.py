"""Talk to the client that launched the program, and to the program's own log."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal, cast, get_args

from inferlet_py._host import get_host
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

__all__ = [
    "MessageIterator",
    "check_message",
    "get_instance_id",
    "get_version",
    "log",
    "messages",
    "receive",
    "send",
]

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[str, ...] = get_args(Level)


async def send(message: str | bytes) -> None:
    """Send a message to the client; waits while the client has left too many unread."""
    host = get_host()
    checked = check_message("send", message)
    if isinstance(checked, str):
        ticket = host.send(checked)
    else:
        ticket = host.send_bytes(checked)
    if ticket is not None:
        await wait_ticket(ticket)
        host.finish(ticket)


async def receive() -> str | bytes | None:
    """Wait for the client's next message; None once it will send no more.

    Several branches that receive get the messages in the order in which they asked, each of
    them one. If this is cancelled, no message is lost.
    """
    host = get_host()
    ticket = host.receive()
    await wait_ticket(ticket)
    return host.take_message(ticket)


def messages() -> AsyncIterator[str | bytes]:
    """Iterate over the client's messages as they come, until it will send no more.

    ``async for message in messages(): ...``
    """
    return MessageIterator(receive)


class MessageIterator:
    """Iterates over what an asynchronous function returns, until that is None."""

    def __init__(
        self, receive_one: Callable[[], Awaitable[str | bytes | None]]
    ) -> None:
        self._receive = receive_one

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return self

    async def __anext__(self) -> str | bytes:
        message = await self._receive()
        if message is None:
            raise StopAsyncIteration
        return message


def check_message(function: str, message: str | bytes) -> str | bytes:
    """Return a message as the host can take it.

    Raises:
        TypeError: It is neither text nor bytes.
    """
    given = cast("object", message)  # authors without a type checker pass anything
    if isinstance(given, str):
        # A lone surrogate has no UTF-8; the other side must still get the rest.
        return given.encode(errors="replace").decode()
    if isinstance(given, bytes):
        return given
    raise TypeError(
        f"{function}() takes text or bytes, got {type(given).__name__}: "
        "convert it first, for example with json.dumps"
    )


def log(text: str, *, level: Level = "info", **fields: object) -> None:
    """Append a line to the instance's log.

    Args:
        text: What is logged.
        level: How loud.
        fields: Values by name, which follow the text as a JSON object; what JSON cannot carry
            becomes text.

    Raises:
        ValueError: There is no such level.
    """
    if level not in LEVELS:
        raise ValueError(f"level is one of {', '.join(LEVELS)}, got {level!r}")
    # ASCII, for else a line break of Unicode in a value would cut the line in two.
    encoded = json.dumps(fields, default=str) if fields else ""
    # A lone surrogate has no UTF-8.
    get_host().log(level, text.encode(errors="replace").decode(), encoded)


def get_instance_id() -> str:
    """Return the name of this run of the program."""
    return get_host().get_instance_id()


def get_version() -> str:
    """Return the version of the server."""
    return get_host().get_version()
