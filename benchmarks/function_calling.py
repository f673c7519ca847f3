"""An agent that calls functions, with three optimisations on top of each other, against vLLM.

    python -m benchmarks.run function_calling --model MODELS/rand-60m --vllm VENV --uncached

#1 keeps what was read of the documentation for all agents, #2 starts a call as soon as it is
written, #3 drops what was said about a function once it is called. The baselines are the same agent
written with the `openai` client: call by call, and with calls that overlap as in #2.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.agents import (
    METRICS,
    add_script_options,
    describe_script,
    open_agent_client,
    start_baselines,
)
from benchmarks.pairing import take_turns
from benchmarks.peers import Starter
from benchmarks.reporting import Report
from benchmarks.serving import add_server_options, open_tool, start_pie
from benchmarks.workloads import AgentClient, Script, Tasks, run_at_once

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.client import Client

ALL = "Pie #1 #2 #3"
STACK: Mapping[str, Mapping[str, bool]] = {
    ALL: {"cache": True, "overlap": True, "drop": True},
    "Pie #1 #2": {"cache": True, "overlap": True},
    "Pie #1": {"cache": True},
    "Pie": {},
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes the workload."""
    add_server_options(parser)
    parser.add_argument("--calls", type=int, default=6)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--uncached", action="store_true", help="vLLM without caching too"
    )
    add_script_options(parser, shared=768, tokens=32)


def measure(options: argparse.Namespace) -> Report:
    """Measure each stack of optimisations, and the baselines, at each concurrency."""
    points: list[Point] = [{"at once": count} for count in options.concurrency]
    with (
        tempfile.TemporaryDirectory(prefix="functions-") as folder,
        ExitStack() as stack,
    ):
        tools = stack.enter_context(open_tool(options.delay))
        starter = Starter(Path(folder), stack)
        pie = start_pie(starter, options, ["functions"], tools=tools)
        servers = start_baselines(starter, options)
        script = Script(options.calls, options.tokens, options.observed, tools)
        series = asyncio.run(_take_turns(pie, servers, script, options, points))
    return Report(
        title=f"{options.calls} function calls on {options.model.name}",
        metrics=METRICS,
        series=series,
        base=ALL,
        x="at once",
        settings=describe_script(options),
    )


async def _take_turns(
    pie: str,
    servers: Mapping[str, str],
    script: Script,
    options: argparse.Namespace,
    points: list[Point],
) -> list[Series]:
    from pie_trio.client import Client

    tasks = Tasks(shared=options.shared, own=options.own)
    async with AsyncExitStack() as stack:
        inferlets = await stack.enter_async_context(Client(pie))
        sides: dict[str, Side] = {
            name: partial(_run_pie, inferlets, tasks, script, flags)
            for name, flags in STACK.items()
        }
        for name, url in servers.items():
            client = await open_agent_client(stack, url)
            sides[name] = partial(_run_client, client, tasks, script, False)
            if name == "vLLM":
                overlapping = partial(_run_client, client, tasks, script, True)
                sides["vLLM, calls overlap"] = overlapping
        return await take_turns(sides, points, rounds=options.rounds)


async def _run_pie(
    pie: Client,
    tasks: Tasks,
    script: Script,
    flags: Mapping[str, bool],
    point: Point,
) -> dict[str, float]:
    async def one() -> int:
        return int(
            await pie.call(
                "functions",
                shared=tasks.shared,
                own=tasks.next(),
                tools=script.tools,
                calls=script.calls,
                tokens=script.tokens,
                observed=script.observed,
                **flags,
            )
        )

    return await run_at_once(int(point["at once"]), one, expected=_expected(script))


async def _run_client(
    client: AgentClient, tasks: Tasks, script: Script, overlap: bool, point: Point
) -> dict[str, float]:
    async def one() -> int:
        prompt = [*tasks.shared, *tasks.next()]
        return await client.functions(prompt, script, overlap=overlap)

    return await run_at_once(int(point["at once"]), one, expected=_expected(script))


def _expected(script: Script) -> int:
    return script.tokens * (script.calls + 1)
