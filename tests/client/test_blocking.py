"""The blocking client: the same calls from a thread without an event loop."""

from __future__ import annotations

import inspect
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.client import (
    BlockingClient,
    BlockingInstance,
    BlockingRun,
    BlockingSession,
    Client,
    End,
    Instance,
    Message,
    MissingError,
    ProgramFailedError,
    Run,
    Session,
    Started,
)
from tests.application.server.clients import text_of
from tests.client.conftest import in_thread, until, url_of

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer

ECHO = "async for m in messages(): await send(m * 2)\nreturn 'done'"
INTERRUPTED = """
import signal, sys
from pie_trio.client import BlockingClient
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
pie = BlockingClient(sys.argv[1])
try:
    pie.call("forever")
except KeyboardInterrupt:
    print("caught", flush=True)
sys.stdin.read()
"""
FOREVER = "await send('on')\nawait sleep(3600)"


async def test_a_program_is_deployed_and_run(open_server: OpenServer) -> None:
    async with open_server() as served:

        def use() -> None:
            with BlockingClient(url_of(served)) as pie:
                pie.deploy(text_of("await send(x)\nreturn 3", parameters="x: str"), "p")
                assert pie.call("p", x="hi") == 3
                run = pie.run("p", x="ho")
                kinds = [type(event).__name__ for event in run]
                assert kinds == ["Started", "Message", "Result", "End"]
                assert run.outcome is not None
                assert run.outcome.value == 3
                assert [program.name for program in pie.programs()] == ["p"]
                assert pie.health() == "ready"
                pie.undeploy("p")
                with pytest.raises(MissingError):
                    pie.call("p")

        await in_thread(use)


async def test_a_failure_is_raised(open_server: OpenServer) -> None:
    async with open_server() as served:

        def use() -> None:
            with BlockingClient(url_of(served)) as pie:
                pie.deploy(text_of("1 / 0"), "bad")
                with pytest.raises(ProgramFailedError, match="division by zero"):
                    pie.call("bad")

        await in_thread(use)


async def test_a_loop_that_is_left_cancels_the_instance(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        pie = BlockingClient(url_of(served))

        def use() -> None:
            pie.deploy(text_of(FOREVER), "forever")
            for event in pie.run("forever"):
                if isinstance(event, Message):
                    break

        await in_thread(use)
        await until(lambda: served.registry.num_running == 0)
        await in_thread(pie.close)


async def test_ctrl_c_in_a_call_cancels_what_it_runs(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("forever", "await sleep(3600)")
        child = await trio.lowlevel.open_process(
            [sys.executable, "-c", INTERRUPTED, url_of(served)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        async with child.stdin, child.stdout:  # type: ignore[union-attr]
            await until(lambda: served.registry.num_running == 1)
            child.send_signal(signal.SIGINT)
            assert child.stdout is not None
            told = b""
            while not told.endswith(b"\n") and (
                more := await child.stdout.receive_some()
            ):
                told += more
            assert told == b"caught\n"
            # It still has its client.
            await until(lambda: served.registry.num_running == 0)
            assert child.poll() is None
        assert await child.wait() == 0


async def test_a_conversation(open_server: OpenServer) -> None:
    async with open_server() as served:

        def use() -> None:
            with BlockingClient(url_of(served)) as pie:
                pie.deploy(text_of(ECHO), "echo")
                with pie.session("echo") as session:
                    session.send("a")
                    for event in session:
                        if isinstance(event, Message):
                            assert event.content == "aa"
                            break
                    session.end_input()
                    assert session.result() == "done"

        await in_thread(use)


async def test_a_detached_instance(open_server: OpenServer) -> None:
    async with open_server() as served:

        def use() -> list[Any]:
            with BlockingClient(url_of(served)) as pie:
                pie.deploy(text_of("print('x')\n" + ECHO), "echo")
                instance = pie.launch("echo")
                instance.send("a")
                instance.end_input()
                with instance.attach() as events:
                    found = list(events)
                with instance.follow_logs() as lines:
                    assert [line.data["text"] for line in lines] == ["x"]
                assert instance.status().state == "succeeded"
                return found

        found = await in_thread(use)
        assert isinstance(found[0], Started)
        assert isinstance(found[-1], End)


async def test_a_client_that_was_closed_begins_anew(open_server: OpenServer) -> None:
    async with open_server() as served:

        def use() -> None:
            pie = BlockingClient(url_of(served))
            assert pie.health() == "ready"
            pie.close()
            with pytest.raises(RuntimeError):
                pie.health()
            pie.close()

        await in_thread(use)


@pytest.mark.parametrize(
    ("blocking", "twin"),
    [
        (BlockingClient, Client),
        (BlockingInstance, Instance),
        (BlockingRun, Run),
        (BlockingSession, Session),
    ],
)
def test_the_twins_have_the_same_methods(blocking: type, twin: type) -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(twin) - {"is_entered", "open_run"} <= public(blocking)
    for name in public(twin) & public(blocking) - {"inferlet"}:
        theirs = getattr(twin, name)
        if inspect.isfunction(theirs):
            expected = [*inspect.signature(theirs).parameters]
            assert [*inspect.signature(getattr(blocking, name)).parameters] == expected
            assert getattr(blocking, name).__doc__ == theirs.__doc__
