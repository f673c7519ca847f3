"""``pie top``: what a server does, live in the terminal, or once."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import trio
from rich.console import Console
from rich.live import Live

from pie_trio.application.remote.top_screen import TopState, render
from pie_trio.client import BrokenConnectionError, UnreachableError
from pie_trio.client.transport import collapsed
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.client import Client

__all__ = ["run_top"]

SNAPSHOT, STREAM = "/v1/stats", "/v1/stats/stream"
RETRY_SECONDS = 1.0


def run_top(
    make_client: Callable[[], Client], *, is_once: bool = False, is_json: bool = False
) -> int:
    """Show what a server does until Ctrl-C; return the exit code.

    Args:
        make_client: Returns how the server is reached.
        is_once: Print one snapshot and return.
        is_json: As JSON; only together with ``is_once``.

    Raises:
        ConfigError: stdout is no terminal.
        RemoteError: No server answers, or it refuses.
    """
    if is_json and not is_once:
        raise ConfigError("--json goes with --once: pie top --once --json")
    if is_once:
        return trio.run(_print_once, make_client, is_json)
    if not sys.stdout.isatty():
        raise ConfigError("stdout is no terminal: pie top --once prints one snapshot")
    trio.run(_watch, make_client)
    return 0


async def _print_once(make_client: Callable[[], Client], is_json: bool) -> int:
    async with make_client() as client:
        data = await client.transport.ask("GET", SNAPSHOT)
        if is_json:
            text = json.dumps(data, ensure_ascii=False, indent=2) + "\n"
            sys.stdout.buffer.write(text.encode("utf-8", "replace"))
            sys.stdout.flush()
            return 0
        state = TopState()
        state.take("snapshot", data)
        console = Console()
        console.print(render(state, url=client.url, width=console.width, height=None))
    return 0


async def _watch(make_client: Callable[[], Client]) -> None:
    """Show the stream until a signal; a server that is gone is waited for."""
    state, console = TopState(), Console()
    async with (
        collapsed(),
        make_client() as client,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        await client.transport.ask("GET", SNAPSHOT)  # before the screen is taken
        with Live(console=console, screen=True, auto_refresh=False) as live:

            def show() -> None:
                live.update(
                    render(
                        state,
                        url=client.url,
                        width=console.width,
                        height=console.height,
                    ),
                    refresh=True,
                )

            while True:
                try:
                    await _follow(client, state, show)
                    state.problem = "the server stops; waiting for it"
                except (BrokenConnectionError, UnreachableError):
                    state.problem = "the server does not answer; trying again"
                show()
                await trio.sleep(RETRY_SECONDS)


async def _follow(client: Client, state: TopState, show: Callable[[], None]) -> None:
    async with await client.transport.open_events("GET", STREAM) as stream:
        while (events := await stream.next_batch()) is not None:
            for event in events:
                state.take(event.kind, event.data)
            show()


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        await anext(received)
    scope.cancel()
