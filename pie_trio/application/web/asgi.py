"""Between ASGI and Quart: bounded bodies, answers in few writes, and closes that tell why."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import trio
from quart.utils import encode_headers
from quart.wrappers.response import DataBody
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioWebsocket

from pie_trio.application.web.feeds import FeedBody, send_feed

if TYPE_CHECKING:
    from hypercorn.typing import (
        ASGIReceiveCallable,
        ASGISendCallable,
        ASGISendEvent,
        WebsocketScope,
    )
    from quart.typing import ResponseTypes
    from quart.wrappers import Request, Websocket
    from quart_trio import QuartTrio

    from pie_trio.application.web.app import WebApp
    from pie_trio.application.web.bodies import BoundedBody, BoundedRequest

__all__ = ["EndedWebSocket", "HttpExchange", "WebSocketExchange"]

MAX_UNRECEIVED = 1
"""Messages of a WebSocket that wait in memory here; more wait with the client."""

NORMAL_CLOSURE, POLICY_VIOLATION, INTERNAL_ERROR = 1000, 1008, 1011


class EndedWebSocket(TrioWebsocket):
    """A WebSocket that keeps how its handler ended.

    Attributes:
        end_status: The status of the error that ended it; None if it returned.
    """

    end_status: int | None = None


class HttpExchange(TrioASGIHTTPConnection):
    """One request: its body goes to the handler at the handler's pace."""

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, request: Request, receive: ASGIReceiveCallable
    ) -> None:
        """Pass the body on. The server cancels the handler when the client leaves."""
        body = cast("BoundedBody", request.body)
        while True:
            message = await receive()
            if message["type"] == "http.request":
                await body.put(message.get("body", b""))
                if not message.get("more_body", False):
                    body.set_complete()
            elif message["type"] == "http.disconnect":
                nursery.cancel_scope.cancel()
                return

    def _create_request_from_scope(self, send: ASGISendCallable) -> Request:
        request = super()._create_request_from_scope(send)
        limit = cast("WebApp", self.app).find_body_limit(request.path)
        if limit is not None:
            cast("BoundedRequest", request).limit_body(limit)
        return request

    async def _send_response(
        self, send: ASGISendCallable, response: ResponseTypes
    ) -> None:
        body = getattr(response, "response", None)
        if not isinstance(body, DataBody | FeedBody):
            await super()._send_response(send, response)
            return
        await send(
            {
                "type": "http.response.start",
                "status": response.status_code,
                "headers": encode_headers(response.headers),
            }
        )
        if isinstance(body, FeedBody):
            await send_feed(body, send)
            return
        data = body.data[body.begin : body.end]
        await send({"type": "http.response.body", "body": data, "more_body": False})


class WebSocketExchange(TrioASGIWebsocketConnection):
    """One WebSocket: messages wait with the client until the handler receives them."""

    def __init__(self, app: QuartTrio, scope: WebsocketScope) -> None:
        super().__init__(app, scope)
        self.send_channel, self.receive_channel = trio.open_memory_channel[bytes | str](
            MAX_UNRECEIVED
        )

    async def handle_messages(  # type: ignore[override]
        self, nursery: trio.Nursery, receive: ASGIReceiveCallable
    ) -> None:
        """Pass messages on, empty ones too. The server cancels when the client leaves."""
        while True:
            event = await receive()
            if event["type"] == "websocket.receive":
                data, text = event.get("bytes"), event.get("text")
                await self.send_channel.send(data if data is not None else text or "")
            elif event["type"] != "websocket.connect":
                nursery.cancel_scope.cancel()
                return

    async def handle_websocket(  # type: ignore[override]
        self, nursery: trio.Nursery, websocket: Websocket, send: ASGISendCallable
    ) -> None:
        """Run the handler, and close with a code that tells how it ended."""

        async def send_end(message: ASGISendEvent) -> None:
            status = cast("EndedWebSocket", websocket).end_status
            if message["type"] == "websocket.close" and status is not None:
                code = INTERNAL_ERROR if status >= 500 else POLICY_VIOLATION
                message = {"type": "websocket.close", "code": code, "reason": None}
            await send(message)

        await super().handle_websocket(nursery, websocket, send_end)
