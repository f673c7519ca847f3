"""The wall clock jumps while a server runs: only what tells a date changes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer

MONTH_SECONDS = 30 * 24 * 3600.0
JUMPS = [MONTH_SECONDS, -MONTH_SECONDS]
SOON_SECONDS = 60.0

EXPORT = (
    "async with Context() as context:\n"
    "    await context.fill('hello')\n"
    "    context.export('mine', persistent=True, seconds_to_live=3600)"
)
LOOK = "return Queue().get_export('mine').expires_in"
WAIT = (
    "import time\n"
    "began = time.time()\n"
    "await send('ready')\n"
    "with move_on_after(3600) as scope:\n"
    "    await receive()\n"  # the clock jumps
    "with move_on_after(0.01):\n"
    "    await sleep_forever()\n"
    "await sleep(0.01)\n"
    "return [scope.cancelled_caught, time.time() - began]"
)


class WallClock:
    """The system's clock, which somebody sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset = 0.0
        real, real_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: real() + self.offset)
        monkeypatch.setattr(
            time, "time_ns", lambda: real_ns() + int(self.offset * 10**9)
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


@pytest.mark.parametrize("jump", JUMPS)
async def test_times_to_live_deadlines_and_keys_do_not_follow_the_wall_clock(
    open_server: OpenServer, clock: WallClock, jump: float
) -> None:
    async with open_server(has_keys=True) as served:
        ann = served.user("ann", "launch", "upload")
        for name, body in (("export", EXPORT), ("look", LOOK), ("wait", WAIT)):
            await ann.deploy(name, body)
        await ann.run("export")
        asked = {"program": "wait", "detach": True}
        place = await ann.ask("POST", "/v1/instances", asked, accept="application/json")
        path = f"/v1/instances/{place.json['id']}"
        with trio.fail_after(SOON_SECONDS):
            async with ann.stream("GET", f"{path}/events") as events:
                await events.until("message")
                before = (await ann.get(path)).json
                clock.offset += jump
                found = (await ann.run("look"))["result"]
                assert 3600 - SOON_SECONDS < found <= 3600
                await ann.ask("POST", f"{path}/messages", {"text": "go on"})
                has_timed_out, elapsed = (await events.until("result"))["value"]
        assert not has_timed_out
        assert abs(elapsed - jump) < SOON_SECONDS, "a program is told the date"
        after = (await ann.get(path)).json
        assert after["launched_at"] == before["launched_at"]
        assert 0 <= after["seconds"] < SOON_SECONDS
        assert (await ann.get("/v1/stats")).status == 200
        await ann.ask("DELETE", "/v1/programs/wait")
        for model in served.launcher.models.values():
            model.exports.clear()


@pytest.mark.parametrize("jump", JUMPS)
async def test_lines_are_limited_by_the_time_that_passes(
    open_fake: OpenLauncher, clock: WallClock, jump: float
) -> None:
    several = "for _ in range(9): print('x' * 300)"
    program = program_of(f"{several}\nawait receive()\n{several}")
    lines = list[str]()
    async with open_fake(log_bytes=1000, log_bytes_per_second=1) as launcher:
        await launcher.compile(program)
        instance = launcher.prepare(
            program, {}, on_log=lambda line: lines.append(line.text)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(instance.run)
            with trio.fail_after(SOON_SECONDS):
                while not lines:
                    await trio.lowlevel.checkpoint()
            clock.offset += jump
            await instance.session.inbox.put("go on")
    assert sum("xxx" in line for line in lines) == 3
