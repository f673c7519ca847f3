"""Random traffic on a real server, over loopback; ``nox -s fuzz`` has far more of it."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio
import trio.testing

from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.state import ServerState
from pie_trio.application.web.shell import ShellConfig
from tests.fuzz.serving import ErrorLog
from tests.fuzz.traffic import Connection, make_case

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pytest

    from tests.application.server.conftest import OpenServer, Served
    from tests.application.web.clients import Client

SHARE_OF_TIME = 0.15
FEW_CASES, CASES_OF_SERVER = 12, 15
# Short, so that who is slow is cut off within a case, and not all of them only in the end.
SHELL = ShellConfig(
    header_seconds=0.5,
    keep_alive_seconds=0.5,
    body_seconds=0.5,
    stall_seconds=0.5,
    ping_seconds=1.0,
    close_seconds=0.2,
    max_body_bytes=100_000,
    max_message_bytes=10_000,
)
QUIET_SECONDS = 15.0
NUM_CHECKPOINTS = 30


class Traffic:
    """Sends cases to a server, and checks it after each."""

    def __init__(self, served: Served) -> None:
        self._served = served
        rules = [r for r in served.app.url_map.iter_rules() if not r.websocket]
        self.routes = sorted(
            (method, str(rule))
            for rule in rules
            for method in (rule.methods or ())
            if not str(rule).endswith("/kill")
        )
        self._num_tasks = 0

    async def start(self) -> None:
        """Deploy what is launched, and note what runs while nobody is there."""
        await self._served.api.deploy(
            "echo", "async for m in messages(): await send(m)"
        )
        await self._wait_quiet()
        await trio.testing.wait_all_tasks_blocked(0.1)  # of that connection too
        self._num_tasks = trio.lowlevel.current_statistics().tasks_living

    async def run(self, case: Sequence[Connection]) -> None:
        """Do what a case says, and check that nothing of it is left."""
        with ErrorLog() as log, trio.fail_after(2 * QUIET_SECONDS):
            async with trio.open_nursery() as nursery:
                for connection in case:
                    nursery.start_soon(self._connect, connection)
            await self._wait_quiet()
            alive = await self._served.api.get("/healthz")
            assert alive.status == 200, alive
            await self._wait_quiet()
        assert not log.lines, "\n".join(log.lines)

    async def _connect(self, connection: Connection) -> None:
        async with await self._served.web.connect(receive_buffer=4096) as client:
            # The server may close, or cut, whenever it has heard enough.
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                for what, data in connection.steps:
                    await self._do(client, what, data)
                if connection.leave == "read":
                    with trio.move_on_after(0.2):
                        while await client.stream.receive_some():
                            pass
                else:
                    await client.leave(connection.leave)

    async def _do(self, client: Client, what: str, data: bytes) -> None:
        if what == "send":
            with trio.move_on_after(
                0.1
            ):  # a server that answers nobody who does not read
                await client.send(data)
        elif what == "read":
            with trio.move_on_after(0.01):
                await client.stream.receive_some()
        else:
            for _ in range(NUM_CHECKPOINTS):
                await trio.lowlevel.checkpoint()

    async def _wait_quiet(self) -> None:
        """Wait until nothing of the clients is left: no connection, instance or task."""
        registry, launcher = self._served.registry, self._served.launcher
        with trio.move_on_after(QUIET_SECONDS):
            while not self._is_quiet():
                for instance in list(registry._running.values()):
                    if instance.is_detached:
                        instance.kill()
                await trio.testing.wait_all_tasks_blocked(0.002)
            return
        raise AssertionError(
            f"{registry.num_running} instances, {launcher.num_running} guests and "
            f"{trio.lowlevel.current_statistics().tasks_living} tasks are left, where there "
            f"were {self._num_tasks}"
        )

    def _is_quiet(self) -> bool:
        num_tasks = trio.lowlevel.current_statistics().tasks_living
        is_idle = (
            self._served.registry.num_running == self._served.launcher.num_running == 0
        )
        return is_idle and (not self._num_tasks or num_tasks <= self._num_tasks)


async def run_cases(
    open_server: OpenServer,
    cases: Sequence[Sequence[Connection]],
) -> str | None:
    """Return what goes wrong on a new server with these cases, if something does."""
    try:
        async with open_server(shell=SHELL, limits=ServerLimits()) as served:
            traffic = Traffic(served)
            await traffic.start()
            for case in cases:
                await traffic.run(case)
    except Exception as error:  # noqa: BLE001 - what it is is told
        found: BaseException = error
        while isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        return f"{type(found).__name__}: {found}"
    return None


async def shrink(
    open_server: OpenServer,
    case: Sequence[Connection],
) -> tuple[str | None, Sequence[Connection]]:
    """Return what goes wrong with a part of a case, and the part."""
    found, failure = list(case), None
    for connection in case:
        fewer = [other for other in found if other is not connection]
        if fewer and (said := await run_cases(open_server, [fewer])) is not None:
            found, failure = fewer, said
    return failure or await run_cases(open_server, [found]), found


async def check_seeds(
    open_server: OpenServer,
    seeds: Sequence[int],
) -> None:
    """Send what these seeds stand for.

    Raises:
        AssertionError: Something goes wrong; with the connections that it takes.
    """
    routes = await find_routes(open_server)
    cases = [make_case(seed, routes) for seed in seeds]
    if await run_cases(open_server, cases) is None:
        return
    for seed, case in zip(seeds, cases, strict=True):
        failure, shown = await shrink(open_server, case)
        if failure is not None:
            lines = "\n".join(map(str, shown))
            raise AssertionError(f"seed {seed} goes wrong: {failure}\n{lines}")
    raise AssertionError(f"seeds {seeds} go wrong only together")


async def find_routes(open_server: OpenServer) -> list[tuple[str, str]]:
    """Return the routes of a server."""
    async with open_server() as served:
        return Traffic(served).routes


async def test_after_any_traffic_the_server_answers_and_holds_nothing(
    open_server: OpenServer,
    fuzz_seconds: float,
    first_seed: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if not fuzz_seconds:
        await check_seeds(open_server, range(FEW_CASES))
        return
    end = time.monotonic() + SHARE_OF_TIME * fuzz_seconds
    for start in itertools.count(first_seed, CASES_OF_SERVER):
        await check_seeds(open_server, range(start, start + CASES_OF_SERVER))
        if time.monotonic() > end:
            break
    with capsys.disabled():
        last = start + CASES_OF_SERVER
        print(f"\ncases of random traffic: {first_seed} to {last}")  # noqa: T201


async def test_the_routes_are_those_of_the_server(open_server: OpenServer) -> None:
    routes = await find_routes(open_server)
    assert {("POST", "/v1/instances"), ("PUT", "/v1/programs/<name>")} <= {*routes}
    assert len(routes) > 20


async def test_a_handler_that_raises_is_found(
    open_server: OpenServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **_options: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr(ServerState, "launch", fail)
    request = b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
    case = [Connection((("send", request), ("read", b"")), "read")]
    assert "planted" in (await run_cases(open_server, [case]) or "")


async def test_a_task_that_stays_is_found(
    open_server: OpenServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tests.fuzz.test_traffic.QUIET_SECONDS", 0.5)
    connect, scope = Traffic._connect, trio.CancelScope()

    async def stay() -> None:
        with scope:
            await trio.sleep_forever()

    async def connect_and_stay(self: Traffic, connection: Connection) -> None:
        trio.lowlevel.spawn_system_task(stay)
        await connect(self, connection)

    monkeypatch.setattr(Traffic, "_connect", connect_and_stay)
    case = [Connection((("send", b"x"),), "fin")]
    assert "tasks are left" in (await run_cases(open_server, [case]) or "")
    scope.cancel()
