"""``/v1/ws``: any number of instances over one WebSocket. See :mod:`.envelopes` for frames."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from quart import websocket

from pie_trio.application.server.answers import problem_of
from pie_trio.application.server.envelopes import (
    decode_binary,
    decode_text,
    encode_event,
    encode_text,
)
from pie_trio.application.server.instance_routes import read_message
from pie_trio.application.server.owners import authorize
from pie_trio.application.web import get_draining, one_write
from pie_trio.control.outbox import Message
from pie_trio.errors import BadArgumentError, LimitError, NotFoundError, PieError

if TYPE_CHECKING:
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.running import EventReader, RunningInstance
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_websocket"]

MAX_ATTACHED = 256
MAX_UNSENT = 64
"""Messages to an instance that its inbox has no room for yet."""
GOING_AWAY, NOT_ALLOWED = 1001, 1008
KINDS = ("launch", "attach", "detach", "message", "signal", "cancel")
"""What a client may send, but for binary frames."""


def add_websocket(app: WebApp, state: ServerState) -> None:
    """Add the route."""

    async def serve_websocket() -> None:
        owner = authorize(websocket, "launch")
        async with trio.open_nursery() as nursery:
            session = _Session(state, owner, nursery)
            nursery.start_soon(session.close_when_draining)
            await session.serve()

    app.add_websocket("/v1/ws", view_func=serve_websocket)


class _Attached:
    """An instance whose events go over this WebSocket.

    Attributes:
        send: To what feeds its inbox.
        scope: Ends reading its events.
    """

    def __init__(
        self, instance: RunningInstance, send: trio.MemorySendChannel[Message | None]
    ) -> None:
        self.instance, self.send = instance, send


class _Session:
    """One WebSocket.

    Args:
        state: Of the server.
        owner: On whose behalf its client acts.
        nursery: Of the handler: it ends, with all that is in it, when the client leaves.
    """

    def __init__(self, state: ServerState, owner: Owner, nursery: trio.Nursery) -> None:
        self._state, self._owner, self._nursery = state, owner, nursery
        self._attached: dict[str, _Attached] = {}
        self._sending = trio.Lock()  # the frames of one batch stay together
        self._none_attached = trio.Event()

    async def serve(self) -> None:
        """Do what the client asks for until it leaves."""
        while True:
            frame: str | bytes = await websocket.receive()
            if self._state.gate.is_revoked(self._owner):
                async with self._sending:
                    await websocket.close(NOT_ALLOWED, "the key was revoked")
                self._nursery.cancel_scope.cancel()
                return
            request: object = None
            answer: dict[str, Any]
            try:
                if isinstance(frame, bytes):
                    name, message = decode_binary(frame)
                    self._put(name, message)
                    continue
                fields = decode_text(frame)
                request = fields.pop("request", None)
                answer = await self._do(fields)
            except PieError as error:
                answer = {"type": "refused", "error": problem_of(error)}
            if request is not None:
                answer["request"] = request
            elif answer["type"] == "done":
                continue
            await self._send(encode_text(answer))

    async def close_when_draining(self) -> None:
        """Close once the server stops and the last instance has told its end."""
        await get_draining().wait()
        while self._attached:
            self._none_attached = trio.Event()
            await self._none_attached.wait()
        async with self._sending:
            await websocket.close(GOING_AWAY, "the server stops")
        self._nursery.cancel_scope.cancel()  # not every client answers a close

    async def _do(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Do one thing, and return the answer to it."""
        kind = fields.pop("type", None)
        if kind == "launch":
            self._check_room()
            instance = await self._state.launch(fields, owner=self._owner)
            self._attach(instance, 0)
            return {"type": "launched", "instance": instance.instance_id}
        if kind not in KINDS:
            raise BadArgumentError(f"type is {kind!r}: expected {', '.join(KINDS)}")
        name = fields.get("instance")
        if not isinstance(name, str):
            raise BadArgumentError(f"{kind} takes an instance, got {name!r}")
        if kind == "message":
            self._put(name, read_message(fields))
        elif kind == "attach":
            self._reattach(name, fields.get("after", 0))
        elif kind == "detach":
            self._find(name).detach()
        elif kind == "cancel":
            self._find(name).cancel()
        else:
            self._signal(name, fields.get("signal"))
        return {"type": "done", "instance": name}

    def _signal(self, name: str, signal: object) -> None:
        if signal == "end-of-input":
            self._put(name, None)
        elif signal == "cancel":
            self._find(name).cancel()
        elif signal == "kill":
            self._find(name).kill()
        else:
            raise BadArgumentError(
                f"signal is {signal!r}: expected end-of-input, cancel or kill"
            )

    def _find(self, name: str) -> RunningInstance:
        return self._state.registry.get(name, owner=self._owner)

    def _check_room(self) -> None:
        if len(self._attached) >= MAX_ATTACHED:
            raise LimitError(
                f"{MAX_ATTACHED} instances are attached to this WebSocket, which is as many "
                "as there may be: open another"
            )

    def _reattach(self, name: str, after: object) -> None:
        if not isinstance(after, int) or after < 0:
            raise BadArgumentError("after must be the number of an event, or 0")
        instance = self._find(name)
        if name in self._attached:
            raise BadArgumentError(f"{name} is attached to this WebSocket already")
        self._check_room()
        self._attach(instance, after)

    def _attach(self, instance: RunningInstance, after: int) -> None:
        send, receive = trio.open_memory_channel[Message | None](MAX_UNSENT)
        attached = _Attached(instance, send)
        self._attached[instance.instance_id] = attached
        self._nursery.start_soon(
            self._serve_instance, attached, instance.attach(after), receive
        )

    def _put(self, name: str, message: Message | None) -> None:
        """Queue a message, so that an instance without room holds up no other."""
        attached = self._attached.get(name)
        if attached is None:
            raise NotFoundError(f"{name} is not attached to this WebSocket")
        try:
            attached.send.send_nowait(message)
        except trio.WouldBlock:
            raise LimitError(
                f"{name} has not received what was sent to it before, and has no room"
            ) from None

    async def _serve_instance(
        self,
        attached: _Attached,
        reader: EventReader,
        messages: trio.MemoryReceiveChannel[Message | None],
    ) -> None:
        """Send the client an instance's events, and the instance what the client sends."""
        name = attached.instance.instance_id
        try:
            with reader, messages, attached.send:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_feed, attached.instance, messages)
                    await self._send_events(name, reader)
                    nursery.cancel_scope.cancel()
        finally:
            del self._attached[name]
            if not self._attached:
                self._none_attached.set()

    async def _send_events(self, name: str, reader: EventReader) -> None:
        async for batch in reader:
            frames = [encode_event(name, event) for event in batch.events]
            if batch.num_lost:
                lost = {"type": "lost", "instance": name, "events": batch.num_lost}
                frames.insert(0, encode_text(lost))
            await self._send(*frames)

    async def _send(self, *frames: str | bytes) -> None:
        async with self._sending, one_write():
            for frame in frames:
                await websocket.send(frame)


async def _feed(
    instance: RunningInstance, messages: trio.MemoryReceiveChannel[Message | None]
) -> None:
    async for message in messages:
        if message is None:
            instance.end_input()
        elif not await instance.send(message):
            return
