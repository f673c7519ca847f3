"""The task in which the application handles one request, or one WebSocket."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, cast

import trio

from pie_trio.application.web.shell.handling import begin_handling

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from hypercorn.config import Config
    from hypercorn.typing import (
        AppWrapper,
        ASGIReceiveEvent,
        ASGISendEvent,
        Scope,
    )

    from pie_trio.application.web.shell.handling import Handling

__all__ = ["MAX_QUEUED_EVENTS", "RequestTask"]

MAX_QUEUED_EVENTS = 2
"""Between reader and application; what a handler leaves unread stays with the client."""

logger = logging.getLogger(__name__)


class RequestTask:
    """Stands in for Hypercorn's task group, for one request.

    Hypercorn tells a handler that its client has left by one more event in a queue, which a
    busy handler never reads. Here the task is cancelled.

    Args:
        nursery: Of the connection.
        handling: What the handler may ask for.
        on_end: Called once, when the task has ended.

    Attributes:
        outcome: Other than ``done`` if the handler failed, or was cancelled since its request
            was refused.
    """

    def __init__(
        self, nursery: trio.Nursery, handling: Handling, on_end: Callable[[], None]
    ) -> None:
        self._nursery, self._handling, self._on_end = nursery, handling, on_end
        self._scope = trio.CancelScope()
        self._send, self._receive = trio.open_memory_channel["ASGIReceiveEvent"](
            MAX_QUEUED_EVENTS
        )
        self.outcome: Literal["done", "refused", "failed"] = "done"

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the application's task, and return what gives it events."""
        self._nursery.start_soon(self._run, app, scope, send)
        return self._put

    def spawn(self, work: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Start a task that ends with the connection."""
        self._nursery.start_soon(work, *args)

    def cancel(self) -> None:
        """Cancel the application's task; again does nothing."""
        self._scope.cancel()

    def end_input(self) -> None:
        """Let it receive a disconnect after what is in the queue."""
        self._send.close()

    async def _put(self, event: ASGIReceiveEvent) -> None:
        # After an end of its channel the application is done with the client.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self._send.send(event)

    async def _take(self) -> ASGIReceiveEvent:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            return {"type": "http.disconnect"}

    async def _run(
        self,
        app: AppWrapper,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> None:
        begin_handling(self._handling)
        try:
            try:
                with self._receive, self._scope:
                    await app(
                        scope,
                        self._take,
                        cast("Callable[[ASGISendEvent], Awaitable[None]]", send),
                        trio.to_thread.run_sync,
                        trio.from_thread.run,
                    )
            except* Exception as group:
                self.outcome = "failed"
                logger.error("a handler failed", exc_info=group)
            await send(None)
        finally:
            self._on_end()
