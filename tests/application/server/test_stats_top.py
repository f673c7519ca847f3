"""``pie top``: what it shows, how it fits, and that it follows a server."""

from __future__ import annotations

import json
import os
import pty
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio
from rich.console import Console

from pie_trio.application.remote.top import run_top
from pie_trio.application.remote.top_screen import TopState, render
from pie_trio.client import Client
from pie_trio.errors import ConfigError, PieError
from tests.cli.conftest import LIMIT_SECONDS, ROOT

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer

WAITING = "context = Context()\nawait context.fill('hello')\nawait receive()"


def instance(name: str, **fields: Any) -> dict[str, Any]:
    usual = {
        "id": name,
        "program": "agent",
        "owner": "ann",
        "state": "running",
        "detached": False,
        "launched_at": 90.0,
        "seconds": None,
        "suspended": False,
        "pages": 7,
        "queue": 2,
        "tokens_computed": 1234,
        "tokens_sampled": 56,
    }
    return usual | fields


def model(**fields: Any) -> dict[str, Any]:
    usual = {
        "name": "tiny",
        "state": "ready",
        "architecture": "LlamaForCausalLM",
        "pages": 100,
        "pages_free": 25,
        "pages_swapped": 3,
        "exports": 0,
        "unfinished": 2,
        "points": [[99.5, 0.5, 10, 40, 400, 0.001, 0.002]],
    }
    return usual | fields


def snapshot(*instances: dict[str, Any], **fields: Any) -> dict[str, Any]:
    usual = {
        "version": "1",
        "at": 100.0,
        "running": len(instances),
        "max_instances": 8,
        "instances": list(instances),
        "models": [model()],
    }
    return usual | fields


def screen(state: TopState, width: int = 100, height: int | None = None) -> list[str]:
    console = Console(width=width, height=height, color_system=None)
    with console.capture() as capture:
        console.print(render(state, url="http://x", width=width, height=height))
    return [line.rstrip() for line in capture.get().splitlines()]


def shown(state: TopState, **size: Any) -> str:
    return "\n".join(screen(state, **size))


def test_a_snapshot_shows_rates_pages_and_instances() -> None:
    state = TopState()
    state.take("snapshot", snapshot(instance("agent-1")))
    text = shown(state)
    assert "1 of 8 instances run" in text
    assert "tokens/s        800" in text
    assert "batches/s        20" in text
    assert "4.0 commands each" in text
    assert "75 of 100, 3 swapped" in text
    assert "75 %" in text
    (row,) = [line.split() for line in screen(state) if "agent-1" in line]
    assert row == ["agent-1", "running", "10.0s", "7", "2", "56", "1,234", "agent"]


def test_several_replicas_have_a_line_of_their_own() -> None:
    replicas = [
        {"state": "ready", "pages": 50, "pages_free": 40, "instances": 2},
        {"state": "restarting", "pages": 50, "pages_free": 50, "instances": 0},
    ]
    state = TopState()
    state.take("snapshot", snapshot(instance("a"), models=[model(replicas=replicas)]))
    assert "replicas  0: 20 %, 2 running   1: restarting" in shown(state)
    state.take("snapshot", snapshot(models=[model(replicas=replicas[:1])]))
    assert "replicas" not in shown(state)


def test_changes_replace_what_has_changed() -> None:
    state = TopState()
    state.take("snapshot", snapshot(instance("agent-1"), instance("agent-2")))
    later = snapshot(instance("agent-2", pages=77), at=101.0, gone=["agent-1"])
    state.take("changes", later)
    text = shown(state)
    assert "agent-1" not in text
    assert "77" in text
    assert len(state.models["tiny"]["points"]) == 2
    assert state.models["tiny"]["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    state = TopState()
    state.take("snapshot", snapshot(instance("an-agent-with-a-long-name-1f00d1")))
    state.problem = "the server does not answer; trying again"
    lines = screen(state, width=width)
    assert max(map(len, lines)) <= width
    assert any("an-age" in line or "…" in line for line in lines)
    assert len(lines) <= 14, "nothing is wrapped"


def test_an_engine_that_is_not_there_is_told() -> None:
    state = TopState()
    state.take("snapshot", snapshot(models=[model(state="restarting")]))
    assert "engine restarting" in shown(state)


def test_what_does_not_fit_below_is_counted() -> None:
    state = TopState()
    rows = [instance(f"agent-{n}", launched_at=float(n)) for n in range(50)]
    state.take("snapshot", snapshot(*rows))
    lines = screen(state, height=24)
    assert len(lines) <= 24
    assert "agent-49" in "\n".join(lines), "the newest comes first"
    assert lines[-1].startswith("36 more")


def test_without_a_server_it_says_what_to_do() -> None:
    with pytest.raises(PieError, match="start one with `pie serve`"):
        run_top(partial(Client, "http://127.0.0.1:1"), is_once=True)


def test_json_is_for_one_snapshot() -> None:
    with pytest.raises(ConfigError, match="--once"):
        run_top(Client, is_json=True)


async def test_one_snapshot_is_printed_as_json(
    open_server: OpenServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async with open_server() as served:
        await served.api.deploy("one", WAITING)
        async with served.api.launch("one") as events:
            name = (await events.until("started"))["id"]
            await events.until("receiving")
            print_it = partial(
                run_top, partial(Client, served.web.urls[0]), is_once=True
            )
            code = await trio.to_thread.run_sync(partial(print_it, is_json=True))
            assert code == 0
            found = json.loads(capfdbinary.readouterr().out)
            await trio.to_thread.run_sync(print_it)
            table = capfdbinary.readouterr().out.decode()
    assert [one["id"] for one in found["instances"]] == [name]
    assert name in table


async def test_it_follows_a_server_until_ctrl_c(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("one", WAITING)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "pie_trio", "top"]
        process = await trio.lowlevel.open_process(
            [*command, "--server", served.web.urls[0]],
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "90", "LINES": "30"},
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        told = b""

        async def until(text: bytes) -> None:
            nonlocal told
            while text not in told:
                told += await trio.to_thread.run_sync(os.read, ours, 1 << 16)

        with trio.fail_after(LIMIT_SECONDS):
            await until(b"nothing runs")
            async with served.api.launch("one") as events:
                name = (await events.until("started"))["id"]
                await until(name.encode())
                told = b""
                await served.api.ask("POST", f"/v1/instances/{name}/cancel")
                await until(b"cancelled")
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
        os.close(ours)
