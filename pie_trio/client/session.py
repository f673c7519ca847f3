"""A conversation with an instance over a WebSocket."""

from __future__ import annotations

import json
import struct
from contextlib import AsyncExitStack, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import anyio
import httpx2.websockets
import wsproto.events
import wsproto.utilities

from pie_trio.client.errors import BrokenConnectionError, refusal_of
from pie_trio.client.events import End, make_event
from pie_trio.client.instances import Instance, Recorder, encode_message
from pie_trio.client.transport import collapsed

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from pie_trio.client.events import Event, Outcome
    from pie_trio.client.transport import Transport

__all__ = ["Session"]

MAX_UNREAD_EVENTS = 4096
"""As many as the server keeps for who attaches again."""
HEADER, NUMBER = struct.Struct("!BB"), struct.Struct("!Q")
"""Of binary frames: version, length of the id; the event's number."""
ENVELOPE = ("type", "instance", "number")
BROKEN = (
    httpx2.websockets.WebSocketDisconnect,
    httpx2.websockets.WebSocketNetworkError,
    wsproto.utilities.LocalProtocolError,  # it is closing
)


class Session:
    """An instance to send to and to read from. An asynchronous context manager.

    It iterates over the instance's events, the last of which is :class:`End`; after it the
    iteration raises if the instance has failed. Leaving the block ends the instance, unless it
    was detached. Read what comes: when 4,096 events wait, answers to what is sent wait as well.

    Attributes:
        instance_id: Of the instance; empty before the block.
    """

    def __init__(self, transport: Transport, asked: dict[str, Any]) -> None:
        self._transport, self._asked = transport, asked
        self._recorder = Recorder()
        self._stack = AsyncExitStack()
        self._answers: dict[int, MemoryObjectSendStream[dict[str, Any]]] = {}
        self._numbers = count(1)
        self._is_over = False
        self._websocket: httpx2.websockets.AsyncWebSocketSession | None = None
        self._events: MemoryObjectReceiveStream[Event]
        self._put: MemoryObjectSendStream[Event]

    @property
    def instance_id(self) -> str:
        """Of the instance; empty before the block."""
        return self._recorder.instance_id

    @property
    def instance(self) -> Instance:
        """Handle to the instance."""
        return Instance(self._transport, self.instance_id)

    @property
    def outcome(self) -> Outcome | None:
        """How the instance has ended; None before :class:`End` was read."""
        return self._recorder.outcome

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(collapsed())
            self._websocket = await stack.enter_async_context(
                self._transport.open_websocket("/v1/ws")
            )
            self._put, self._events = anyio.create_memory_object_stream["Event"](
                MAX_UNREAD_EVENTS
            )
            stack.callback(self._events.close)
            group = await stack.enter_async_context(anyio.create_task_group())
            stack.callback(group.cancel_scope.cancel)
            group.start_soon(self._read)
            answer = await self._ask(self._asked)
            self._recorder.instance_id = str(answer["instance"])
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: Any) -> bool | None:
        return await self._stack.__aexit__(*error)

    async def send(self, message: str | bytes) -> None:
        """Send a message.

        Raises:
            MissingError: The instance has ended.
            OverloadedError: It has not received what was sent before, and has no room.
        """
        await self._do({"type": "message", **encode_message(message)})

    async def end_input(self) -> None:
        """Let the instance know that no more messages will come."""
        await self.signal("end-of-input")

    async def signal(self, signal: str) -> None:
        """Send ``end-of-input``, ``cancel`` or ``kill``."""
        await self._do({"type": "signal", "signal": signal})

    async def cancel(self) -> None:
        """End the instance; its last events still come."""
        await self.signal("cancel")

    async def detach(self) -> None:
        """Let the instance outlive this block."""
        await self._do({"type": "detach"})

    async def result(self) -> Any:
        """Read to the end, and return what the instance has returned.

        Raises:
            InstanceFailedError: It has failed, or was ended.
        """
        async for _event in self:
            pass
        assert self.outcome is not None, "else the iteration has raised"
        return self.outcome.value

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await anext(self._events, None)
        if event is None:
            self._recorder.check()
            raise StopAsyncIteration
        self._recorder.note(event)
        return event

    # ---- the WebSocket -----------------------------------------------------------------

    async def _do(self, fields: dict[str, Any]) -> None:
        await self._ask({**fields, "instance": self.instance_id})

    async def _ask(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer."""
        assert self._websocket is not None, "it is open inside of the block"
        number = next(self._numbers)
        put, answers = anyio.create_memory_object_stream[dict[str, Any]](1)
        with put, answers:
            self._answers[number] = put
            try:
                if self._is_over:
                    raise anyio.EndOfStream
                text = json.dumps({**fields, "request": number})
                await self._websocket.send_text(text)
                answer = await answers.receive()
            except (anyio.EndOfStream, *BROKEN) as error:
                raise BrokenConnectionError(
                    f"the WebSocket to {self._transport.url} was closed: the server stopped, "
                    "or the network did"
                ) from error
            finally:
                del self._answers[number]
        if answer["type"] == "refused":
            raise refusal_of(int(answer["error"]["status"]), answer["error"])
        return answer

    async def _read(self) -> None:
        """Hand answers to those who wait for them, and events to who iterates."""
        assert self._websocket is not None, "it is open inside of the block"
        with self._put, suppress(*BROKEN):
            while True:
                frame = await self._websocket.receive()
                if isinstance(frame, wsproto.events.BytesMessage):
                    await self._put.send(_decode_binary(bytes(frame.data)))
                elif isinstance(frame, wsproto.events.TextMessage):
                    await self._take(json.loads(frame.data))
        self._is_over = True
        for put in self._answers.values():
            put.close()

    async def _take(self, fields: dict[str, Any]) -> None:
        """Take a frame of text: an answer or an event."""
        if (number := fields.pop("request", None)) is not None:
            if (waiting := self._answers.get(number)) is not None:
                waiting.send_nowait(fields)
            return
        data = {k: v for k, v in fields.items() if k not in ENVELOPE}
        event = make_event(fields["type"], fields.get("number", 0), data)
        await self._put.send(event)
        if isinstance(event, End):  # answers may still come
            self._put.close()


def _decode_binary(frame: bytes) -> Event:
    """Return the message in a binary frame."""
    _, length = HEADER.unpack_from(frame)
    start = HEADER.size + length
    (number,) = NUMBER.unpack_from(frame, start)
    return make_event("message", number, {"binary": frame[start + NUMBER.size :]})
