"""ReACT, CodeACT and Swarm as inferlets, and as clients of vLLM: agents a second, and their latency.

    python -m benchmarks.run agents --model MODELS/rand-60m --vllm VENV --calls 1 2 4 8 16

Pie's agents are inferlets, whose KV pages stay while a tool works. The others are written with the
`openai` client in this process, against vLLM with prefix caching; with --uncached also without, as
the paper's. All tools are one server on loopback that answers after --delay.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pairing import take_turns
from benchmarks.peers import Starter
from benchmarks.reporting import Metric, Report
from benchmarks.serving import (
    add_server_options,
    describe_servers,
    open_tool,
    start_pie,
    start_vllm,
)
from benchmarks.workloads import CODE, AgentClient, Script, Tasks, run_at_once

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.client import Client

METRICS = (
    Metric("throughput", "agents/s", "more"),
    Metric("latency", "s", "less"),
)
KINDS = ("react", "codeact", "swarm")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes the workload."""
    add_server_options(parser)
    parser.add_argument("--agents", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--calls", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--uncached", action="store_true", help="vLLM without caching too"
    )
    add_script_options(parser, shared=256, tokens=16)


def add_script_options(
    parser: argparse.ArgumentParser, *, shared: int, tokens: int
) -> None:
    """Add the lengths of an agent's texts."""
    parser.add_argument("--delay", type=float, default=0.1, help="seconds of a call")
    parser.add_argument(
        "--shared", type=int, default=shared, help="tokens that all agents begin with"
    )
    parser.add_argument("--own", type=int, default=64, help="tokens of each question")
    parser.add_argument(
        "--tokens", type=int, default=tokens, help="to generate before each call"
    )
    parser.add_argument(
        "--observed", type=int, default=32, help="tokens of a tool's answer"
    )


def measure(options: argparse.Namespace) -> Report:
    """Measure all agents at each number of calls and each concurrency."""
    points: list[Point] = [
        {"agent": agent, "at once": count, "calls": calls}
        for agent in options.agents
        for count in options.concurrency
        for calls in options.calls
    ]
    with (
        tempfile.TemporaryDirectory(prefix="agents-") as folder,
        ExitStack() as stack,
    ):
        tools = stack.enter_context(open_tool(options.delay))
        starter = Starter(Path(folder), stack)
        pie = start_pie(starter, options, ["agent", "swarm"], tools=tools)
        servers = start_baselines(starter, options)
        tasks = Tasks(shared=options.shared, own=options.own)
        series = asyncio.run(
            _take_turns(pie, servers, tasks, options, tools=tools, points=points)
        )
    return Report(
        title=f"agents of {options.model.name}",
        metrics=METRICS,
        series=series,
        base="Pie",
        x="calls",
        settings=describe_script(options),
    )


def start_baselines(starter: Starter, options: argparse.Namespace) -> dict[str, str]:
    """Start vLLM, if it is there, and return the URLs by name."""
    servers: dict[str, str] = {}
    if options.vllm:
        servers["vLLM"] = start_vllm(starter, options)
        if options.uncached:
            servers["vLLM, no prefix cache"] = start_vllm(
                starter, options, caches=False
            )
    return servers


def describe_script(options: argparse.Namespace) -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        **describe_servers(options),
        "tool": f"{options.delay * 1000:g} ms",
        "tokens shared": options.shared,
        "own": options.own,
        "generated before each call": options.tokens,
        "of an answer": options.observed,
    }


async def open_agent_client(stack: AsyncExitStack, url: str) -> AgentClient:
    """Open a client of a server with OpenAI's interface."""
    from httpx2 import AsyncClient, Limits
    from openai import AsyncOpenAI

    openai = await stack.enter_async_context(
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    )
    limits = Limits(max_connections=None, max_keepalive_connections=None)
    http = await stack.enter_async_context(AsyncClient(limits=limits, timeout=60))
    return AgentClient(openai, http)


async def _take_turns(
    pie: str,
    servers: Mapping[str, str],
    tasks: Tasks,
    options: argparse.Namespace,
    *,
    tools: str,
    points: list[Point],
) -> list[Series]:
    from pie_trio.client import Client

    async with AsyncExitStack() as stack:
        inferlets = await stack.enter_async_context(Client(pie))
        make = partial(
            Script, tokens=options.tokens, observed=options.observed, tools=tools
        )
        sides: dict[str, Side] = {"Pie": partial(_run_pie, inferlets, tasks, make)}
        for name, url in servers.items():
            client = await open_agent_client(stack, url)
            sides[name] = partial(_run_client, client, tasks, make)
        return await take_turns(sides, points, rounds=options.rounds)


async def _run_pie(
    pie: Client, tasks: Tasks, make: partial[Script], point: Point
) -> dict[str, float]:
    script, kind = make(calls=int(point["calls"])), point["agent"]
    extra = {"code": CODE} if kind == "codeact" else {}

    async def one() -> int:
        return int(
            await pie.call(
                "swarm" if kind == "swarm" else "agent",
                shared=tasks.shared,
                own=tasks.next(),
                tools=script.tools,
                calls=script.calls,
                tokens=script.tokens,
                observed=script.observed,
                **extra,
            )
        )

    return await run_at_once(
        int(point["at once"]), one, expected=_expected(script, str(kind))
    )


async def _run_client(
    client: AgentClient, tasks: Tasks, make: partial[Script], point: Point
) -> dict[str, float]:
    script, kind = make(calls=int(point["calls"])), point["agent"]

    async def one() -> int:
        own = tasks.next()
        if kind == "swarm":
            return await client.swarm(tasks.shared, own, script)
        run = client.codeact if kind == "codeact" else client.react
        return await run([*tasks.shared, *own], script)

    return await run_at_once(
        int(point["at once"]), one, expected=_expected(script, str(kind))
    )


def _expected(script: Script, kind: str) -> int:
    return script.tokens * (script.calls + (kind != "swarm"))
