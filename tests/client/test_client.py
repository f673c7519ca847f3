"""The asynchronous client against a server, on both event loops."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.client import (
    BrokenConnectionError,
    Client,
    DeniedError,
    End,
    Failure,
    InstanceCancelledError,
    InvalidRequestError,
    Log,
    Message,
    MissingError,
    OverloadedError,
    ProgramFailedError,
    Receiving,
    Result,
    Started,
    UnreachableError,
)
from pie_trio.errors import ConfigError
from tests.application.server.clients import text_of
from tests.client.conftest import until, url_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.application.server.conftest import OpenServer
    from tests.client.conftest import OnLoop, OpenClient

FOREVER = "await send('on')\nawait sleep(3600)"
ECHO = "async for m in messages(): await send(m * 2)\nreturn 'done'"


listen = partial(trio.serve_tcp, port=0, host="127.0.0.1")


async def test_events_come_as_objects(open_server: OpenServer, on_loop: OnLoop) -> None:
    async def use(pie: Client) -> list[Any]:
        await pie.deploy(
            text_of(
                "print('hi')\nawait send(b'\\xff')\nawait send(who)\nreturn [1]",
                parameters="who: str",
            ),
            "greet",
        )
        return [event async for event in pie.run("greet", who="ann")]

    async with open_server() as served:
        events = await on_loop(served, use)
    kinds = [type(event) for event in events]
    assert kinds == [Started, Log, Message, Message, Result, End]
    assert [event.number for event in events] == [1, 2, 3, 4, 5, 6]
    assert events[0].program == "greet"
    assert (events[1].source, events[1].text) == ("stdout", "hi")
    assert [event.content for event in events[2:4]] == [b"\xff", "ann"]
    assert events[4].value == [1]
    assert events[5].state == "succeeded"


async def test_a_call_returns_the_result(
    open_server: OpenServer, on_loop: OnLoop
) -> None:
    async def use(pie: Client) -> Any:
        await pie.deploy(text_of("return x + 1", parameters="x: int"), "plus")
        return await pie.call("plus", x=41)

    async with open_server() as served:
        assert await on_loop(served, use) == 42


async def test_an_outcome_has_the_value_and_what_it_cost(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(
            text_of("async with Context() as c:\n    await c.fill('abc')\nreturn 7"),
            "x",
        )
        async with pie.run("x") as run:
            assert await run.result() == 7
        assert run.outcome is not None
        assert (run.outcome.state, run.outcome.value) == ("succeeded", 7)
        assert run.outcome.instance_id == run.instance.instance_id
        assert run.outcome.seconds > 0


async def test_a_failure_has_the_traceback_of_the_program(
    open_server: OpenServer, on_loop: OnLoop
) -> None:
    async def use(pie: Client) -> tuple[list[Any], ProgramFailedError]:
        await pie.deploy(text_of("await send('x')\n1 / 0"), "bad")
        events = list[Any]()
        with pytest.raises(ProgramFailedError) as caught:  # noqa: PT012 - its end raises
            async for event in pie.run("bad"):
                events.append(event)
        return events, caught.value

    async with open_server() as served:
        events, error = await on_loop(served, use)
    assert [type(event) for event in events] == [Started, Message, Failure, End]
    assert (error.kind, error.message) == ("ZeroDivisionError", "division by zero")
    assert 'File "app.py", line 6' in error.traceback
    assert error.__notes__ == [f"On the server:\n{error.traceback.rstrip()}"]


async def test_what_cannot_be_imported_is_refused_with_its_traceback(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, _):
        with pytest.raises(ProgramFailedError) as caught:
            await pie.deploy(b"x = (\n", "bad")
        assert (caught.value.kind, caught.value.status) == ("SyntaxError", 422)
        assert await pie.programs() == []


async def test_a_cancelled_scope_cancels_the_instance(open_client: OpenClient) -> None:
    async with open_client() as (pie, served):
        await pie.deploy(text_of(FOREVER), "forever")
        with trio.CancelScope() as scope:
            async with aclosing(pie.run("forever").__aiter__()) as events:  # type: ignore[type-var]
                async for event in events:
                    if isinstance(event, Message):
                        scope.cancel()
        assert scope.cancelled_caught
        await until(lambda: served.registry.num_running == 0)
        (status,) = await pie.instances()
        assert status.state == "cancelled"


async def test_asyncio_cancels_too(open_server: OpenServer) -> None:
    import asyncio

    async def use(pie: Client) -> None:
        await pie.deploy(text_of(FOREVER), "forever")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await pie.call("forever")

    async with open_server() as served:

        async def main() -> None:
            async with Client(url_of(served)) as pie:
                await use(pie)

        await trio.to_thread.run_sync(lambda: asyncio.run(main()))
        await until(lambda: served.registry.num_running == 0)


async def test_leaving_the_block_cancels_the_instance(open_client: OpenClient) -> None:
    async with open_client() as (pie, served):
        await pie.deploy(text_of(FOREVER), "forever")
        async with pie.run("forever") as events:
            async for event in events:
                if isinstance(event, Message):
                    break
        await until(lambda: served.registry.num_running == 0)


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
async def test_a_loop_without_a_block_that_is_left_cancels_too(
    open_client: OpenClient,
) -> None:
    async with open_client() as (pie, served):
        await pie.deploy(text_of(FOREVER), "forever")
        async for event in pie.run("forever"):
            if isinstance(event, Message):
                break
        await until(lambda: served.registry.num_running == 0)


async def test_events_are_read_once(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of("pass"), "x")
        run = pie.run("x")
        assert await run.result() is None
        with pytest.raises(RuntimeError, match="were read already"):
            await run.__aenter__()


async def test_a_detached_instance_is_attached_to_again(
    open_server: OpenServer, on_loop: OnLoop
) -> None:
    async def use(pie: Client) -> tuple[Any, ...]:
        await pie.deploy(text_of(ECHO), "echo")
        instance = await pie.launch("echo")
        await instance.send("a", b"b")
        async with instance.attach() as events:
            async for event in events:
                if isinstance(event, Message) and event.content == b"bb":
                    break
        await instance.end_input()
        again = instance.attach(after=2)
        found = [event async for event in again]
        return found, again.outcome, await instance.status()

    async with open_server() as served:
        events, outcome, status = await on_loop(served, use)
    assert isinstance(events[0], Message)
    assert [type(event) for event in events] == [Message, Message, Result, End]
    assert outcome.value == "done"
    assert (status.state, status.is_detached) == ("succeeded", True)


async def test_cancel_ends_it_and_listeners_hear_it(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of(FOREVER), "forever")
        instance = await pie.launch("forever")
        assert (await instance.cancel()).state == "cancelled"
        with pytest.raises(InstanceCancelledError, match="it was cancelled"):
            await instance.attach().result()
        with pytest.raises(MissingError, match="takes no more messages"):
            await instance.send("x")


async def test_logs_are_read_and_followed(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(
            text_of("print('one')\nawait receive()\nlog('two', level='warning')"), "x"
        )
        instance = await pie.launch("x")
        found = list[Any]()
        async with instance.follow_logs() as lines:
            async for line in lines:
                found.append(line)
                if len(found) == 1:
                    await instance.send("go")
        assert [(line.source, line.text) for line in found] == [
            ("stdout", "one"),
            ("warning", "two"),
        ]
        assert [line.text for line in (await instance.logs()).lines] == ["one", "two"]


async def test_programs_are_listed_shown_and_removed(
    open_client: OpenClient, tmp_path: Path
) -> None:
    file = tmp_path / "hello.py"
    file.write_bytes(text_of("return who", parameters="who: str = 'you'"))
    async with open_client() as (pie, _):
        assert (await pie.deploy(file)).outcome == "created"
        assert (await pie.deploy(str(file))).outcome == "unchanged"
        (listed,) = await pie.programs()
        shown = await pie.program("hello")
        assert (listed.name, listed.sha256) == ("hello", shown.sha256)
        assert shown.arguments is not None
        assert shown.arguments["properties"]["who"]["default"] == "you"
        assert await pie.has_program("hello")
        await pie.undeploy("hello")
        assert not await pie.has_program("hello")
        with pytest.raises(MissingError, match="there is no program 'hello'"):
            await pie.call("hello")
        with pytest.raises(ValueError, match="needs a name"):
            await pie.deploy(b"x")


async def test_the_server_tells_of_itself(open_client: OpenClient) -> None:
    async with open_client() as (pie, served):
        assert await pie.health() == "ready"
        assert [model["id"] for model in await pie.models()] == [
            *served.launcher.models
        ]
        assert "# TYPE" in await pie.metrics()
        served.registry.is_draining = True
        with pytest.raises(OverloadedError):
            await pie.health()


async def test_refusals_are_of_their_kind(open_client: OpenClient) -> None:
    async with open_client(max_instances=1) as (pie, _):
        await pie.deploy(text_of(FOREVER), "forever")
        with pytest.raises(InvalidRequestError) as caught:
            await pie.deploy(text_of("pass"), "-x")
        assert (caught.value.status, caught.value.code) == (422, "invalid-argument")
        instance = await pie.launch("forever")
        with pytest.raises(OverloadedError, match="as many as there may be"):
            await pie.call("forever")
        await instance.cancel()
        with pytest.raises(TypeError, match="not JSON serializable"):
            await pie.call("forever", x=object())


async def test_no_server_is_an_error_that_says_what_to_do() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    async with Client(f"http://127.0.0.1:{port}") as pie:
        with pytest.raises(UnreachableError, match="start one with `pie serve`"):
            await pie.programs()
        with pytest.raises(UnreachableError):
            await pie.call("x")
        with pytest.raises(UnreachableError):
            async with pie.session("x"):
                pass


async def test_a_connection_that_breaks_is_an_error(open_server: OpenServer) -> None:
    async def cut(stream: trio.SocketStream) -> None:
        request = b""
        while not request.endswith(b"}"):  # what is unread would reset the connection
            request += await stream.receive_some(10_000)
        event = b'event: started\ndata: {"id": "x-1", "program": "x"}\n\n'
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event
        )

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(listen, cut)
        port = listener.socket.getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}") as pie:
            with pytest.raises(BrokenConnectionError, match="cut off"):
                await pie.call("x")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "url", ["ftp://x", "localhost:8000", "http://x/y", "http://:x"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is no server"):
        Client(url)


async def test_a_key_goes_with_every_request() -> None:
    seen = list[bytes]()

    async def deny(stream: trio.SocketStream) -> None:
        request = bytes(await stream.receive_some(10_000))
        while request.startswith(b"POST") and not request.endswith(b"}"):
            request += await stream.receive_some(10_000)
        seen.append(request)
        body = json.dumps({"error": {"status": 401, "message": "no such key"}})
        head = f"HTTP/1.1 401 x\r\nConnection: close\r\nContent-Length: {len(body)}"
        await stream.send_all(f"{head}\r\n\r\n{body}".encode())

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(listen, deny)
        port = listener.socket.getsockname()[1]
        async with Client(f"http://127.0.0.1:{port}", key="secret") as pie:
            with pytest.raises(DeniedError, match="no such key"):
                await pie.call("x")
            with pytest.raises(DeniedError, match="no such key"):
                async with pie.session("x"):
                    pass
        nursery.cancel_scope.cancel()
    assert len(seen) == 3
    assert all(b"authorization: bearer secret" in text.lower() for text in seen)


def test_the_client_needs_little() -> None:
    heavy = ("torch", "wasmtime", "quart", "trio", "numpy", "IPython")
    code = (
        "import sys, pie_trio.client, pie_trio.client.blocking; "
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


async def test_it_says_that_it_waits_for_a_message(open_client: OpenClient) -> None:
    async with open_client() as (pie, _):
        await pie.deploy(text_of(ECHO), "echo")
        async with pie.run("echo") as run:
            async for event in run:
                if isinstance(event, Receiving):
                    await run.instance.send("x")
                    await run.instance.end_input()
                if isinstance(event, Message):
                    assert event.content == "xx"
