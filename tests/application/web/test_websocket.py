"""WebSockets: messages, limits, and the codes that they close with."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest
import trio
from quart import abort, websocket
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage

from pie_trio.application.web import one_write
from pie_trio.application.web.shell import ShellConfig
from tests.application.web.clients import HANDSHAKE, open_websocket
from tests.application.web.servers import LONG_SECONDS, Probe, app_with, running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pie_trio.application.web import WebApp


def app_of(handler: Callable[[], Awaitable[None]]) -> WebApp:
    app = app_with()
    app.add_websocket("/ws", "ws", handler)
    return app


async def echo() -> None:
    while True:
        await websocket.send(await websocket.receive())


def frame(opcode: int, payload: bytes, *, is_final: bool = True, rsv: int = 0) -> bytes:
    """A client's frame, masked by zeros; what wsproto would not make."""
    first = (0x80 if is_final else 0) | rsv | opcode
    length = len(payload)
    size = (
        bytes([0x80 | length])
        if length < 126
        else bytes([0xFE]) + length.to_bytes(2, "big")
        if length < 1 << 16
        else bytes([0xFF]) + length.to_bytes(8, "big")
    )
    return bytes([first]) + size + b"\0\0\0\0" + payload


TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9


@pytest.mark.parametrize("text", ["", "hello", "\u20ac" * 1000, "x" * 100_000])
async def test_text_comes_back(text: str) -> None:
    async with running(app_of(echo)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        await ws.send_text(text)
        assert await ws.read_text() == text


@pytest.mark.parametrize("data", [b"", b"\0\xff", b"x" * 100_000])
async def test_bytes_come_back_as_bytes(data: bytes) -> None:
    async with running(app_of(echo)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        await ws.send(BytesMessage(data))
        received = b""
        while True:
            event = await ws.next_event()
            if isinstance(event, BytesMessage):
                received += bytes(event.data)
                if event.message_finished:
                    break
        assert received == data


async def test_fragments_are_one_message_and_control_frames_come_between() -> None:
    async with running(app_of(echo)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        await ws.send(TextMessage("a", message_finished=False))
        await ws.send(Ping(b"now"))
        for _ in range(1000):
            await ws.send(TextMessage("", message_finished=False))
        await ws.send(TextMessage("b", message_finished=True))
        while not isinstance(event := await ws.next_event(), Pong):
            assert isinstance(event, Ping)
        assert event.payload == b"now"
        assert await ws.read_text() == "ab"


async def test_a_character_may_be_cut_by_fragments() -> None:
    async with running(app_of(echo)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        await client.send(frame(TEXT, b"\xe2\x82", is_final=False) + frame(0, b"\xac"))
        assert await ws.read_text() == "\u20ac"


@pytest.mark.parametrize("size", [1000, 1001])
@pytest.mark.parametrize("num_fragments", [1, 7])
@pytest.mark.parametrize("kind", [TEXT, BINARY])
async def test_messages_have_a_limit_in_bytes(
    kind: int, num_fragments: int, size: int
) -> None:
    config = ShellConfig(max_message_bytes=1000)
    payload = ("\u00e9" * 500).encode().ljust(size, b"x")
    step = -(-size // num_fragments)
    parts = [payload[i : i + step] for i in range(0, size, step)]
    async with running(app_of(echo), config) as server:
        async with await server.connect() as client:
            ws = await open_websocket(client)
            for number, part in enumerate(parts):
                is_final = number == len(parts) - 1
                await client.send(frame(0 if number else kind, part, is_final=is_final))
            if size <= 1000:
                assert isinstance(await ws.next_event(), Ping)
                assert isinstance(
                    await ws.next_event(), TextMessage if kind == TEXT else BytesMessage
                )
                return
            close = await ws.read_close()
            assert close.code == 1009
            assert "1000 bytes" in (close.reason or "")
            await client.expect_end()
        await server.check_alive()


async def test_after_a_message_that_is_too_large_nothing_more_is_taken() -> None:
    config = ShellConfig(max_message_bytes=1000, close_seconds=0.1)
    async with running(app_of(echo), config) as server:
        async with await server.connect() as client:
            ws = await open_websocket(client)
            await client.send_for_ever(frame(BINARY, b"x" * 65536, is_final=False))
            assert (await ws.read_close()).code == 1009


async def test_compression_is_not_agreed_to() -> None:
    """Else 200 kB would be 200 MB in memory before their size is known."""
    config = ShellConfig(max_message_bytes=1000)
    async with running(app_of(echo), config) as server:
        async with await server.connect() as client:
            offer = b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            await client.send(HANDSHAKE + offer)
            head = await client.read_until(b"\r\n\r\n")
            assert b" 101 " in head
            assert b"extensions" not in head.lower()
            bomb = zlib.compress(bytes(1 << 20))
            await client.send(frame(BINARY, bomb, rsv=0x40))
            await client.read_until(b"\x03\xea")  # 1002
            await client.read_all()
        await server.check_alive()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xe2\x82"), 1007),
        (frame(3, b""), 1002),
        (frame(0, b"x"), 1002),
        (frame(TEXT, b"x", is_final=False) + frame(TEXT, b"x"), 1002),
        (frame(PING, b"x" * 126), 1002),
        (frame(PING, b"x", is_final=False), 1002),
        (frame(TEXT, b"x", rsv=0x10), 1002),
        (frame(CLOSE, b"\x03"), 1002),
        (frame(CLOSE, b"\x00\x01"), 1002),
        (b"\x81\x01x", 1002),  # not masked
        (b"\x81\xff" + b"\xff" * 8, 1002),
    ],
)
async def test_what_is_no_websocket_is_closed_with_its_code(
    data: bytes, code: int
) -> None:
    probe = Probe()

    async def watched() -> None:
        await websocket.accept()
        with probe.watch():
            await echo()

    config = ShellConfig(close_seconds=LONG_SECONDS)
    async with running(app_of(watched), config) as server:
        async with await server.connect() as client:
            ws = await open_websocket(client)
            await client.send(data)
            assert (await ws.read_close()).code == code
            await client.expect_end()
            await probe.wait_for_end()  # which does not wait for the client
        assert (probe.num_cancelled, probe.num_ended) == (1, 1)
        await server.check_alive()


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999, None])
async def test_a_clients_close_is_answered_with_its_code(code: int | None) -> None:
    async with running(app_of(echo)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        await client.send(frame(CLOSE, code.to_bytes(2, "big") if code else b""))
        assert (await ws.read_close()).code == (code or 1005)
        await client.expect_end()


async def return_at_once() -> None:
    await websocket.accept()


async def close_itself() -> None:
    await websocket.accept()
    await websocket.close(4001, "my reason")


async def fail() -> None:
    await websocket.accept()
    raise ValueError("a secret")


async def refuse_late() -> None:
    await websocket.accept()
    abort(403)


@pytest.mark.parametrize(
    ("handler", "code", "reason"),
    [
        (return_at_once, 1000, None),
        (close_itself, 4001, "my reason"),
        (fail, 1011, None),
        (refuse_late, 1008, None),
    ],
)
async def test_a_handlers_end_has_its_code(
    handler: Callable[[], Awaitable[None]], code: int, reason: str | None
) -> None:
    async with running(app_of(handler)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        close = await ws.read_close()
        assert (close.code, close.reason or None) == (code, reason)
        await client.expect_end()


async def fail_early() -> None:
    raise ValueError("a secret")


async def forbid() -> None:
    abort(403, "not you")


@pytest.mark.parametrize(
    ("handler", "status", "message"),
    [(fail_early, 500, "its log says why"), (forbid, 403, "not you")],
)
async def test_a_handler_that_does_not_accept_answers_in_http(
    handler: Callable[[], Awaitable[None]], status: int, message: str
) -> None:
    async with running(app_of(handler)) as server, await server.connect() as client:
        await client.send(HANDSHAKE + b"\r\n")
        response = await client.read_response()
        assert response.status == status
        assert message in response.error["message"]
        assert b"secret" not in response.body
        await client.expect_end()


async def test_a_subprotocol_that_was_not_offered_is_the_handlers_fault() -> None:
    async def choose() -> None:
        await websocket.accept(subprotocol="b")

    async with running(app_of(choose)) as server:
        async with await server.connect() as client:
            await client.send(HANDSHAKE + b"Sec-WebSocket-Protocol: a\r\n\r\n")
            assert (await client.read_response()).status == 500
        await server.check_alive()


async def test_a_subprotocol_is_agreed_to() -> None:
    async def choose() -> None:
        await websocket.accept(subprotocol="b")

    async with running(app_of(choose)) as server, await server.connect() as client:
        await client.send(HANDSHAKE + b"Sec-WebSocket-Protocol: a, b\r\n\r\n")
        head = await client.read_until(b"\r\n\r\n")
        assert b"sec-websocket-protocol: b\r\n" in head.lower()


async def test_messages_sent_together_are_one_segment() -> None:
    begin = trio.Event()

    async def burst() -> None:
        await websocket.accept()
        await begin.wait()
        async with one_write():
            for number in range(20):
                await websocket.send(str(number))

    async with running(app_of(burst)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        assert isinstance(await ws.next_event(), Ping)
        begin.set()
        segment = bytes(await client.stream.receive_some(65536))
        assert segment.startswith(b"\x81\x010\x81\x011")
        assert b"\x81\x0219" in segment


async def test_a_client_that_answers_pings_stays() -> None:
    config = ShellConfig(ping_seconds=0.01)
    async with running(app_of(echo), config) as server:
        async with await server.connect() as client:
            ws = await open_websocket(client)
            for _ in range(5):
                event = await ws.next_event()
                assert isinstance(event, Ping)
                await ws.send(event.response())
            await ws.send_text("still there")
            assert await ws.read_text() == "still there"


async def test_a_client_that_answers_no_ping_is_gone() -> None:
    probe = Probe()

    async def watched() -> None:
        await websocket.accept()
        with probe.watch():
            await trio.sleep_forever()

    async with running(app_of(watched), ShellConfig(ping_seconds=0.02)) as server:
        async with await server.connect() as client:
            await open_websocket(client)
            await probe.wait_for_end()
            assert (probe.num_cancelled, probe.num_ended) == (1, 1)
            await client.send_for_ever(frame(PING, b""))


async def test_a_client_whose_messages_wait_is_not_taken_for_gone() -> None:
    """Its pongs wait behind them."""
    receive = trio.Event()

    async def slow() -> None:
        await websocket.accept()
        await receive.wait()
        for _ in range(20):
            await websocket.receive()
        await websocket.send("all")

    async with running(app_of(slow), ShellConfig(ping_seconds=0.02)) as server:
        async with await server.connect() as client:
            ws = await open_websocket(client)
            for _ in range(20):
                await ws.send_text("hello")
            for _ in range(4):
                assert isinstance(await ws.next_event(), Ping)
            receive.set()
            assert await ws.read_text() == "all"


@pytest.mark.parametrize("tiny", [frame(PING, b""), frame(0, b"", is_final=False)])
async def test_a_flood_of_tiny_frames_lets_others_run(tiny: bytes) -> None:
    num_turns, num_frames = 0, 8_000

    async def other() -> None:
        nonlocal num_turns
        while True:
            await trio.lowlevel.checkpoint()
            num_turns += 1

    async with running(app_of(echo)) as server, await server.connect() as client:
        await open_websocket(client)
        await client.send(frame(TEXT, b"", is_final=False))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            await client.send(tiny * num_frames + frame(0, b"the end"))
            await client.read_until(b"the end")
            nursery.cancel_scope.cancel()
    assert num_turns > num_frames / 100


async def test_a_close_is_answered_while_the_handler_only_sends() -> None:
    async def send() -> None:
        await websocket.accept()
        while True:
            await websocket.send("x" * 100)

    async with running(app_of(send)) as server, await server.connect() as client:
        ws = await open_websocket(client)
        await ws.send(CloseConnection(code=1000))
        assert (await ws.read_close()).code == 1000
