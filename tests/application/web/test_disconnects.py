"""A client that leaves cancels its handler: at once, once, and whatever either side is doing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio
from quart import request, websocket
from wsproto.events import CloseConnection

from pie_trio.application.web import make_event_stream
from pie_trio.application.web.shell import ShellConfig
from tests.application.web.clients import HANDSHAKE, open_websocket
from tests.application.web.servers import LONG_SECONDS, Probe, app_with, running, settle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pie_trio.application.web import WebApp

WAYS = ["fin", "rst", "half-close"]

SEES_ENDS_BEHIND_DATA = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells of an end behind unread data"
)

# Nothing in these tests may be found by a deadline.
PATIENT = ShellConfig(
    stall_seconds=LONG_SECONDS, ping_seconds=LONG_SECONDS, body_seconds=LONG_SECONDS
)


async def check_one_cancelled(probe: Probe) -> None:
    await probe.wait_for_end()
    await settle()
    assert (probe.num_cancelled, probe.num_ended) == (1, 1)


async def wait(probe: Probe) -> None:
    """A handler before its answer."""
    with probe.watch():
        await trio.sleep_forever()


async def compute(probe: Probe) -> None:
    with probe.watch():
        while True:
            await trio.lowlevel.checkpoint()


async def stream_idle(probe: Probe) -> Any:
    return make_event_stream(idle_events(probe))


async def idle_events(probe: Probe) -> AsyncGenerator[bytes]:
    with probe.watch():
        yield b"data: x\n\n"
        await trio.sleep_forever()


async def stream_paced(probe: Probe) -> Any:
    return make_event_stream(paced_events(probe))


async def paced_events(probe: Probe) -> AsyncGenerator[bytes]:
    with probe.watch():
        while True:
            yield b"data: x\n\n"
            await trio.sleep(0.005)


async def stream_tight(probe: Probe) -> Any:
    return make_event_stream(tight_events(probe))


async def tight_events(probe: Probe) -> AsyncGenerator[bytes]:
    with probe.watch():
        while True:
            yield b"data: " + b"x" * 1000 + b"\n\n"


HANDLERS = [wait, compute, stream_idle, stream_paced, stream_tight]


def app_of(handler: Callable[[Probe], Any], probe: Probe) -> WebApp:
    async def run() -> Any:
        return await handler(probe)

    return app_with(run=run)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_client_that_leaves_cancels_its_handler_once(
    handler: Callable[[Probe], Any], how: str
) -> None:
    probe = Probe()
    async with running(app_of(handler, probe), PATIENT) as server:
        async with await server.connect() as client:
            await client.send_get("/run")
            await probe.began.wait()
            await client.leave(how)
            await check_one_cancelled(probe)
        await server.check_alive()


@SEES_ENDS_BEHIND_DATA
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("handler", HANDLERS)
async def test_a_pipelined_request_hides_no_end(
    handler: Callable[[Probe], Any], how: str
) -> None:
    probe = Probe()
    async with running(app_of(handler, probe), PATIENT) as server:
        async with await server.connect() as client:
            await client.send_get("/run")
            await probe.began.wait()
            await client.send_get("/run")
            await settle()
            await client.leave(how)
            await check_one_cancelled(probe)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("handler", [stream_paced, stream_tight])
async def test_a_client_that_has_stopped_to_read_cancels_when_it_leaves(
    handler: Callable[[Probe], Any], how: str
) -> None:
    probe = Probe()
    async with running(app_of(handler, probe), PATIENT) as server:
        async with await server.connect(receive_buffer=4096) as client:
            await client.send_get("/run")
            await probe.began.wait()
            await settle()
            await client.leave(how)
            await check_one_cancelled(probe)


@SEES_ENDS_BEHIND_DATA
@pytest.mark.parametrize("how", WAYS)
async def test_a_body_that_nobody_reads_hides_no_end(how: str) -> None:
    probe = Probe()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await wait(probe)

    async with running(app, PATIENT) as server, await server.connect() as client:
        await client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 999\r\n\r\n")
        await probe.began.wait()
        for _ in range(20):  # more pieces than wait in memory
            await client.send(b"x")
            await settle()
        await client.leave(how)
        await check_one_cancelled(probe)


@pytest.mark.parametrize("how", WAYS)
async def test_a_client_that_leaves_in_its_body_cancels_its_handler(how: str) -> None:
    probe = Probe()

    async def read() -> str:
        with probe.watch():
            await request.get_data()
        return "x"

    async with running(app_with(read=read), PATIENT) as server:
        async with await server.connect() as client:
            await client.send(
                b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhello"
            )
            await probe.began.wait()
            await client.leave(how)
            await check_one_cancelled(probe)


async def ws_receive(probe: Probe) -> None:
    with probe.watch():
        while True:
            await websocket.receive()


async def ws_sleep(probe: Probe) -> None:
    await websocket.accept()
    with probe.watch():
        await trio.sleep_forever()


async def ws_send_flat_out(probe: Probe) -> None:
    """No checkpoint but that of the send."""
    await websocket.accept()
    with probe.watch():
        while True:
            await websocket.send("x" * 1000)


def websocket_app(handler: Callable[[Probe], Any], probe: Probe) -> WebApp:
    app = app_with()

    @app.websocket("/ws")
    async def ws() -> None:
        await handler(probe)

    return app


@pytest.mark.parametrize("how", [*WAYS, "close"])
@pytest.mark.parametrize("handler", [ws_receive, ws_sleep, ws_send_flat_out])
async def test_a_websocket_that_ends_cancels_its_handler_once(
    handler: Callable[[Probe], Any], how: str
) -> None:
    probe = Probe()
    async with running(websocket_app(handler, probe), PATIENT) as server:
        async with await server.connect(receive_buffer=4096) as client:
            ws = await open_websocket(client)
            await probe.began.wait()
            if how == "close":
                await ws.send(CloseConnection(code=1000))
            else:
                await client.leave(how)
            await check_one_cancelled(probe)
        await server.check_alive()


@SEES_ENDS_BEHIND_DATA
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("num_messages", [5, 20, 200])
async def test_messages_that_nobody_receives_hide_no_end(
    num_messages: int, how: str
) -> None:
    probe = Probe()
    async with running(websocket_app(ws_sleep, probe), PATIENT) as server:
        async with await server.connect() as client:
            ws = await open_websocket(client)
            await probe.began.wait()
            for _ in range(num_messages):
                await ws.send_text("hello")
            await settle()
            await client.leave(how)
            await check_one_cancelled(probe)


@pytest.mark.parametrize("how", WAYS)
async def test_a_handshake_that_is_left_cancels_its_handler(how: str) -> None:
    probe = Probe()

    async def never_accept(probe: Probe) -> None:
        with probe.watch():
            await trio.sleep_forever()

    async with running(websocket_app(never_accept, probe), PATIENT) as server:
        async with await server.connect() as client:
            await client.send(HANDSHAKE + b"\r\n")
            await probe.began.wait()
            await client.leave(how)
            await check_one_cancelled(probe)


async def test_the_loop_goes_on_while_a_handler_sends_to_nobody() -> None:
    """Stock Hypercorn drops what is sent to a closed WebSocket without a checkpoint."""
    probe = Probe()
    async with running(websocket_app(ws_send_flat_out, probe), PATIENT) as server:
        async with await server.connect() as client:
            await open_websocket(client)
            await probe.began.wait()
            await client.leave("rst")
        await server.check_alive()
        await check_one_cancelled(probe)


async def test_cleanup_of_a_handler_is_waited_for() -> None:
    began, cleaned = trio.Event(), trio.Event()

    async def work() -> None:
        try:
            began.set()
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(1, shield=True):
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                cleaned.set()

    async with running(app_with(work=work)) as server:
        async with await server.connect() as client:
            await client.send_get("/work")
            await began.wait()
            await client.leave("rst")
            with trio.fail_after(30):
                await cleaned.wait()


async def test_an_error_while_a_handler_is_cancelled_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    probe = Probe()

    async def fail() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in cleanup")

    async def work() -> str:
        with probe.watch():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                nursery.start_soon(trio.sleep_forever)
        return "x"

    async with running(app_with(work=work)) as server:
        async with await server.connect() as client:
            await client.send_get("/work")
            await probe.began.wait()
            await client.leave("fin")
            await probe.wait_for_end()
        await server.check_alive()
    assert any(
        record.exc_info and "in cleanup" in caplog.text for record in caplog.records
    )


@pytest.mark.parametrize("path", ["/run", "/ws"])
async def test_a_handler_that_sends_in_its_cleanup_stops_nobody(path: str) -> None:
    probe = Probe()

    async def clean_up(send: Callable[[], Any]) -> None:
        with probe.watch():
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(0.02, shield=True):
                    while True:
                        await send()

    async def ws() -> None:
        await websocket.accept()
        await clean_up(lambda: websocket.send("x"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/run":
            await quart(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        part = {"type": "http.response.body", "body": b"x", "more_body": True}
        await clean_up(lambda: send(part))

    quart = app_with()
    quart.add_websocket("/ws", "ws", ws)
    async with running(app, PATIENT) as server:
        async with await server.connect() as client:
            if path == "/ws":
                await open_websocket(client)
            else:
                await client.send_get(path)
            await probe.began.wait()
            await client.leave("fin")
            await check_one_cancelled(probe)
        await server.check_alive()


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_that_leaves_while_it_is_refused_is_no_failure(
    way: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_eof = trio.SocketStream.send_eof

    async with running(app_with()) as server:
        async with await server.connect() as client:

            async def leave_first(stream: trio.SocketStream) -> None:
                monkeypatch.undo()  # the client's own is the plain one
                await client.leave(way)
                await send_eof(stream)

            monkeypatch.setattr(trio.SocketStream, "send_eof", leave_first)
            await client.send(b"no request\r\n\r\n")
            await settle()
        await server.check_alive()
    assert caplog.records == []
