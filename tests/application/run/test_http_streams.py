"""Answers that are read as they come, in Wasm, from servers on loopback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.host.http_bodies import MAX_BODIES, MAX_WAITING_BYTES
from pie_trio.application.outgoing import HttpLimits
from pie_trio.application.services import Grants, Outgoing
from pie_trio.errors import GuestFailedError
from tests.application.conftest import OpenLauncher, program_of
from tests.application.outgoing.servers import NO_TLS, listen

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pie_trio.application.lifecycle.instances import Launcher

LIMIT_SECONDS = 120
LEAVE_SECONDS = 20
"""Less than a server may be silent."""
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


def services(**limits: Any) -> dict[str, Any]:
    return {"outgoing": Outgoing(HttpLimits(**limits), make_ssl_context=lambda: NO_TLS)}


async def run(launcher: Launcher, body: str, port: int, **details: Any) -> Any:
    program = program_of(body, parameters="url: str")
    url = f"http://127.0.0.1:{port}/"
    grants = Grants(http=(f"127.0.0.1:{port}",))
    with trio.fail_after(LIMIT_SECONDS):
        instance = launcher.prepare(program, {"url": url}, grants=grants, **details)
        result = json.loads(await instance.run())
    assert launcher.num_running == 0
    return result


def sending(
    *parts: bytes, then: Callable[[trio.SocketStream], Awaitable[None]] | None = None
) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A handler that answers with these parts, chunked, and then does something else."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for part in parts:
            await stream.send_all(b"%x\r\n%s\r\n" % (len(part), part))
        if then is not None:
            await then(stream)
        else:
            await stream.send_all(b"0\r\n\r\n")

    return handle


async def test_a_body_is_read_as_it_comes(open_fake: OpenLauncher) -> None:
    has_first = trio.Event()

    async def finish(stream: trio.SocketStream) -> None:
        await has_first.wait()
        await stream.send_all(b"3\r\ntwo\r\n0\r\n\r\n")

    body = (
        "async with http_stream('POST', url, json={'a': 1}) as answer:\n"
        "    parts = []\n"
        "    async for part in answer:\n"
        "        log('part')\n"
        "        parts.append(part.decode())\n"
        "    return [answer.status, answer.head.header('content-type'), parts]"
    )
    async with (
        open_fake(services=services()) as launcher,
        listen(sending(b"one", then=finish)) as port,
    ):
        # The server goes on only once the program has had the first part.
        found = await run(launcher, body, port, on_log=lambda _: has_first.set())
    assert found == [200, "text/plain", ["one", "two"]]


@pytest.mark.parametrize(
    ("method", "parts", "expected"),
    [
        ("lines", [b"a\r\nb", b"\xc3", b"\xa9\n\nc"], ["a", "bé", "", "c"]),
        ("events", [b"data: a\n\nda", b"ta: b\n\ndata: c"], ["a", "b"]),
    ],
)
async def test_a_body_is_lines_or_events(
    open_fake: OpenLauncher, method: str, parts: list[bytes], expected: list[str]
) -> None:
    body = (
        "async with http_stream('GET', url) as answer:\n"
        f"    return [getattr(x, 'data', x) async for x in answer.{method}()]"
    )
    async with (
        open_fake(services=services()) as launcher,
        listen(sending(*parts)) as port,
    ):
        assert await run(launcher, body, port) == expected


async def test_a_body_that_nobody_reads_waits_at_its_server(
    open_fake: OpenLauncher,
) -> None:
    num_sent = 0
    is_stuck = trio.Event()
    part = b"x" * (64 << 10)

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal num_sent
        await stream.receive_some()
        await stream.send_all(HEAD + b"\r\n")
        while True:
            with trio.move_on_after(0.5) as scope:
                await stream.send_all(part)
            if scope.cancelled_caught:
                is_stuck.set()
                return
            num_sent += len(part)

    body = (
        "async with http_stream('GET', url) as answer:\n"
        "    first = await anext(answer)\n"
        "    await receive()\n"
        "    return [len(first) > 0, len(await answer.read())]"
    )
    program = program_of(body, parameters="url: str")
    async with open_fake(services=services()) as launcher, listen(handle) as port:
        grants = Grants(http=("127.0.0.1:*",))
        url = f"http://127.0.0.1:{port}/"
        instance = launcher.prepare(program, {"url": url}, grants=grants)

        async def go_on_once_stuck() -> None:
            await is_stuck.wait()
            instance.session.inbox.end()

        with trio.fail_after(LIMIT_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(go_on_once_stuck)
                has_first, num_rest = json.loads(await instance.run())
    # What sockets hold besides is the system's.
    assert has_first
    assert MAX_WAITING_BYTES < num_rest < 64 * MAX_WAITING_BYTES


LEAVE = """
async with http_stream('GET', url) as answer:
    await anext(answer)
await receive()
return [part async for part in answer]
"""

CANCEL = """
from inferlet_py._host import get_host
from inferlet_py._http import NOTHING, make_request
host = get_host()
ticket = host.open_http(1, make_request('GET', url, (), b'', NOTHING, True))
await sleep(0.2)
host.cancel(ticket)
await receive()
return []
"""


@pytest.mark.parametrize(("body", "part"), [(LEAVE, b"x"), (CANCEL, None)])
async def test_a_stream_that_is_left_is_closed_at_once(
    open_fake: OpenLauncher, body: str, part: bytes | None
) -> None:
    is_closed = trio.Event()

    async def wait_for_the_end(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        is_closed.set()

    program = program_of(body, parameters="url: str")
    handle = wait_for_the_end if part is None else sending(part, then=wait_for_the_end)
    async with open_fake(services=services()) as launcher, listen(handle) as port:
        grants = Grants(http=(f"127.0.0.1:{port}",))
        url = f"http://127.0.0.1:{port}/"
        instance = launcher.prepare(program, {"url": url}, grants=grants)

        async def let_it_end() -> None:
            await is_closed.wait()
            instance.session.inbox.end()

        with trio.fail_after(LEAVE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(let_it_end)
                assert json.loads(await instance.run()) == []


async def test_a_cancelled_wait_for_a_head_gives_the_request_up(
    open_fake: OpenLauncher,
) -> None:
    body = (
        "with move_on_after(0.2) as scope:\n"
        "    async with http_stream('GET', url): pass\n"
        "return scope.cancelled_caught"
    )

    async def say_nothing(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with open_fake(services=services()) as launcher, listen(say_nothing) as port:
        assert await run(launcher, body, port)


async def test_a_body_that_breaks_off_fails_where_it_does(
    open_fake: OpenLauncher,
) -> None:
    async def break_off(stream: trio.SocketStream) -> None:
        await stream.send_eof()

    body = (
        "parts = []\n"
        "try:\n"
        "    async with http_stream('GET', url) as answer:\n"
        "        async for part in answer: parts.append(part.decode())\n"
        "except FailedError as error:\n"
        "    return [parts, 'not valid HTTP' in str(error)]"
    )
    async with (
        open_fake(services=services()) as launcher,
        listen(sending(b"one", then=break_off)) as port,
    ):
        assert await run(launcher, body, port) == [["one"], True]


async def test_a_reader_may_take_longer_than_a_server(open_fake: OpenLauncher) -> None:
    parts = [b"x" * (64 << 10)] * 64
    body = (
        "async with http_stream('GET', url) as answer:\n"
        "    await sleep(3)\n"
        "    return len(await answer.read())"
    )
    async with (
        open_fake(services=services(timeout_seconds=2)) as launcher,
        listen(sending(*parts)) as port,
    ):
        assert await run(launcher, body, port) == sum(map(len, parts))


async def test_a_silence_of_the_server_has_a_limit(
    open_fake: OpenLauncher,
) -> None:
    async def fall_silent(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    body = (
        "async with http_stream('GET', url) as answer:\n"
        "    await anext(answer)\n"
        "    await anext(answer)"
    )
    async with (
        open_fake(services=services(timeout_seconds=0.3)) as launcher,
        listen(sending(b"x", then=fall_silent)) as port,
    ):
        with pytest.raises(GuestFailedError, match=r"sent nothing for 0\.3 seconds"):
            await run(launcher, body, port)


async def test_hosts_that_are_not_granted_and_servers_that_are_not_there_say_so(
    open_fake: OpenLauncher,
) -> None:
    body = "async with http_stream('GET', 'http://127.0.0.2:9/'): pass"
    async with open_fake(services=services()) as launcher:
        with pytest.raises(GuestFailedError, match="--allow-http"):
            await run(launcher, body, 1)
        with pytest.raises(GuestFailedError, match="cannot connect"):
            await run(launcher, body.replace("'http://127.0.0.2:9/'", "url"), 1)


async def test_bodies_have_a_limit(open_fake: OpenLauncher) -> None:
    body = (
        "host = __import__('inferlet_py')._host.get_host()\n"
        "from inferlet_py._http import make_request, NOTHING\n"
        "request = make_request('GET', url, (), b'', NOTHING, True)\n"
        "found = []\n"
        f"for number in [1, 1, *range(2, {MAX_BODIES + 2})]:\n"
        "    try: host.open_http(number, request)\n"
        "    except HostError as error: found.append(type(error).__name__)\n"
        "try: host.close_body(999)\n"
        "except HostError as error: found.append(type(error).__name__)\n"
        "return found"
    )
    async with (
        open_fake(services=services()) as launcher,
        listen(sending(b"x")) as port,
    ):
        found = await run(launcher, body, port)
    assert found == ["BadArgumentError", "LimitError", "NotFoundError"]
