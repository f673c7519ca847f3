"""Several instances over one WebSocket."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from wsproto.events import BytesMessage, Ping, TextMessage

from pie_trio.application.server.limits import ServerLimits
from tests.application.web.clients import WebSocketClient, open_websocket

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.application.server.conftest import OpenServer, Served

ECHO = "async for message in messages(): await send(message)\nreturn 'end'"
WAITS = "await send('ready')\nawait receive()"


class Socket:
    """A WebSocket to a server, and the frames that have come over it."""

    def __init__(self, websocket: WebSocketClient) -> None:
        self.websocket = websocket
        self.seen = list[dict[str, Any]]()

    async def send(self, **fields: Any) -> None:
        await self.websocket.send_text(json.dumps(fields))

    async def next(self) -> dict[str, Any] | bytes:
        """Return the next frame; pings are answered."""
        text, data = "", b""
        while True:
            match await self.websocket.next_event():
                case Ping() as ping:
                    await self.websocket.send(ping.response())
                case BytesMessage() as part:
                    data += part.data
                    if part.message_finished:
                        return bytes(data)
                case TextMessage() as part:
                    text += part.data
                    if part.message_finished:
                        return dict(json.loads(text))
                case other:
                    raise AssertionError(other)

    async def until(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """Return the next frame of a type and with these fields; frames between are kept."""
        while True:
            frame = await self.next()
            if isinstance(frame, bytes):
                continue
            if frame["type"] == kind and wanted.items() <= frame.items():
                return frame
            self.seen.append(frame)

    async def launch(self, program: str, **fields: Any) -> str:
        await self.send(type="launch", request=1, program=program, **fields)
        return str((await self.until("launched", request=1))["instance"])


@asynccontextmanager
async def open_socket(served: Served, **options: Any) -> AsyncGenerator[Socket]:
    async with await served.web.connect(**options) as client:
        yield Socket(await open_websocket(client, "/v1/ws"))


async def test_instances_share_a_websocket(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("echo", ECHO)
        async with open_socket(served) as socket:
            one, two = await socket.launch("echo"), await socket.launch("echo")
            await socket.send(type="message", instance=two, text="for two")
            await socket.send(type="message", instance=one, text="for one")
            first = await socket.until("message", instance=one)
            assert first["text"] == "for one"
            assert first["number"] > 1
            for name in (one, two):
                await socket.send(type="signal", instance=name, signal="end-of-input")
                await socket.until("end", instance=name, state="succeeded")
            texts = [f["text"] for f in socket.seen if f["type"] == "message"]
            assert texts == ["for two"]
            results = [f["value"] for f in socket.seen if f["type"] == "result"]
            assert results == ["end", "end"]


async def test_binary_frames_carry_messages_of_bytes(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("echo", ECHO)
        async with open_socket(served) as socket:
            name = await socket.launch("echo")
            await socket.until("receiving")
            head = bytes([1, len(name)]) + name.encode()
            frame = head + bytes(8) + b"\x00\xff"
            await socket.websocket.send(BytesMessage(frame))
            answer = await socket.next()
            assert isinstance(answer, bytes)
            assert answer.startswith(head)
            assert answer.endswith(b"\x00\xff")
            number = int.from_bytes(answer[len(head) : len(head) + 8], "big")
            assert number == 3  # after started and receiving


async def test_what_was_launched_here_ends_with_the_websocket_unless_detached(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with open_socket(served) as socket:
            gone = await socket.launch("waits")
            later = await socket.launch("waits")
            born = await socket.launch("waits", detach=True)
            await socket.send(type="detach", instance=later, request=2)
            await socket.until("done", request=2)
            await socket.websocket.client.leave("rst")
            with trio.fail_after(30):
                await served.registry.get(gone, owner=served.owner).wait_ended()
            assert await served.api.state(gone) == "cancelled"
            async with open_socket(served) as again:
                for name in (later, born):
                    assert await served.api.state(name) == "running"
                    await again.send(type="attach", instance=name, after=1)
                    event = await again.until("message", instance=name)
                    assert event["text"] == "ready"
                    await again.send(type="message", instance=name, text="")
                    await again.until("end", instance=name, state="succeeded")


async def test_cancel_ends_one_and_leaves_the_others(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with open_socket(served) as socket:
            one, two = await socket.launch("waits"), await socket.launch("waits")
            await socket.send(type="cancel", instance=one)
            error = await socket.until("error", instance=one)
            assert error["code"] == "cancelled"
            await socket.until("end", instance=one, state="cancelled")
            assert await served.api.state(two) == "running"


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        ("{", 422),
        ("[]", 422),
        ("{}", 422),
        ("[" * 100_000, 422),
        ('{"type": "launch"}', 422),
        ('{"type": "launch", "program": "nobody"}', 404),
        ('{"type": "launch", "program": "waits", "more": 1}', 422),
        ('{"type": "dance", "instance": "x"}', 422),
        ('{"type": "attach", "instance": "x"}', 404),
        ('{"type": "attach", "instance": "x", "after": "y"}', 422),
        ('{"type": "cancel", "instance": "x"}', 404),
        ('{"type": "message", "instance": "x", "text": "y"}', 404),
        ('{"type": "signal", "instance": "x", "signal": "y"}', 422),
        (b"", 422),
        (b"\x02\x01x" + bytes(8), 422),
        (b"\x01\xff", 422),
        (b"\x01\x01x" + bytes(8) + b"message", 404),
    ],
    ids=repr,
)
async def test_a_frame_that_makes_no_sense_is_refused(
    open_server: OpenServer, frame: str | bytes, status: int
) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with open_socket(served) as socket:
            if isinstance(frame, bytes):
                await socket.websocket.send(BytesMessage(frame))
            else:
                await socket.websocket.send_text(frame)
            assert (await socket.until("refused"))["error"]["status"] == status
            await socket.launch("waits")  # it goes on


async def test_an_instance_without_room_holds_up_no_other(
    open_server: OpenServer,
) -> None:
    async with open_server(max_unread=1) as served:
        await served.api.deploy("deaf", "await sleep(3600)")
        await served.api.deploy("echo", ECHO)
        async with open_socket(served) as socket:
            deaf, echo = await socket.launch("deaf"), await socket.launch("echo")
            for _ in range(100):
                await socket.send(type="message", instance=deaf, text="x")
            refused = await socket.until("refused")
            assert refused["error"]["status"] == 429
            await socket.send(type="message", instance=echo, text="still here")
            await socket.until("message", instance=echo, text="still here")


async def test_a_client_that_does_not_read_stops_only_its_own_instances(
    open_server: OpenServer,
) -> None:
    limits = ServerLimits(max_events=16, max_event_bytes=100_000)
    async with open_server(limits=limits, max_unread=8) as served:
        await served.api.deploy("floods", "while True: await send('x' * 10_000)")
        await served.api.deploy("hello", "pass")
        async with open_socket(served, receive_buffer=4096) as socket:
            name = await socket.launch("floods")
            instance = served.registry.get(name, owner=served.owner)
            last = -1
            with trio.fail_after(30):
                while last != instance.events.last_number:  # until it stands still
                    last = instance.events.last_number
                    for _ in range(5):
                        await served.api.run("hello")
            assert instance.events.num_bytes < 1_000_000
            assert await served.api.state(name) == "running"


async def test_when_the_server_stops_the_last_events_come_before_the_close(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("waits", WAITS)
        async with open_socket(served) as socket:
            name = await socket.launch("waits")
            await socket.until("message")
            async with open_socket(served) as idle:
                served.web.shutdown.set()
                assert (await idle.websocket.read_close()).code == 1001
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(served.registry.drain, 0.05)
                    error = await socket.until("error", instance=name)
                    assert error["message"] == "the server stops"
                    await socket.until("end", instance=name, state="cancelled")
                    assert (await socket.websocket.read_close()).code == 1001
                await served.web.ended.wait()
