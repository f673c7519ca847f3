"""Techniques as inferlets, and as clients of another server: runs a second, and their latency.

    python -m benchmarks.run techniques --model MODELS/rand-60m --vllm VENV --speculation

Trees, recursions, graphs and skeletons of thought have a script, since random weights decide nothing:
how many thoughts of which length there are is given. The others are the programs of `examples`, with
texts that nobody has asked for yet. All clients ask one server for all that can run at once, with
prefix caching. Without --vllm they ask Pie's own OpenAI route, and the figures are no comparison of
engines but of a program that runs inside with one outside.
"""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from benchmarks._completions import Completer
from benchmarks._standard import STANDARD, Texts
from benchmarks._thoughts import THOUGHTS, Graph, Recursion, Skeleton, Tree
from benchmarks.pairing import take_turns
from benchmarks.peers import Starter, make_prompts
from benchmarks.reporting import Metric, Report
from benchmarks.serving import (
    add_server_options,
    describe_servers,
    start_pie,
    start_vllm,
)
from benchmarks.traces import OPENAI_ROUTE, end_tokens
from benchmarks.workloads import Tasks, run_at_once

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Mapping

    from benchmarks._standard import Request, Run, Standard
    from benchmarks.pairing import Point, Series, Side
    from pie_trio.client import Client

METRICS = (
    Metric("throughput", "runs/s", "more"),
    Metric("latency", "s", "less"),
    Metric("tokens", "a run"),
)
NUM_POINTS, NUM_ASKED, NUM_DRAFTED = 3, 8, 4
"""Points of a skeleton, tokens that ask for one thing, and drafts of a step."""
SPECULATING = "vLLM, n-grams"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what makes the workload."""
    add_server_options(parser)
    names = [*THOUGHTS, *STANDARD]
    parser.add_argument("--techniques", nargs="+", default=names, choices=names)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[8, 32])
    parser.add_argument(
        "--speculation", action="store_true", help="vLLM with drafts by n-grams too"
    )
    parser.add_argument("--shared", type=int, default=256, help="tokens, of all runs")
    parser.add_argument("--own", type=int, default=64, help="tokens of each question")
    parser.add_argument("--tokens", type=int, default=64, help="of a thought or text")


def measure(options: argparse.Namespace) -> Report:
    """Measure all techniques at each concurrency."""
    programs = [
        STANDARD[name].example if name in STANDARD else name
        for name in options.techniques
    ]
    with (
        tempfile.TemporaryDirectory(prefix="techniques-") as folder,
        ExitStack() as stack,
    ):
        starter = Starter(Path(folder), stack)
        pie = start_pie(starter, options, programs)
        servers = {OPENAI_ROUTE: pie}
        if options.vllm:
            servers = {"vLLM": start_vllm(starter, options)}
            if options.speculation and "speculation" in options.techniques:
                url = start_vllm(starter, options, drafts=NUM_DRAFTED)
                servers[SPECULATING] = url
        series = asyncio.run(_measure(pie, servers, options))
    (base, *_) = servers
    notes = [
        f"{name}: {STANDARD[name].unlike}."
        for name in options.techniques
        if name in STANDARD and STANDARD[name].unlike
    ]
    if notes:
        notes.insert(
            0, f"What {base} cannot do is compared with the nearest that it can."
        )
    if not options.vllm:
        notes.append(
            f"No vLLM was named: {OPENAI_ROUTE} is asked by the clients, and has neither beams "
            "nor JSON in completions."
        )
    return Report(
        title=f"techniques on {options.model.name}",
        metrics=METRICS,
        series=series,
        base="Pie",
        x="technique",
        settings={
            **describe_servers(options),
            "tokens shared": options.shared,
            "own": options.own,
            "generated": options.tokens,
        },
        notes=notes,
    )


async def _measure(
    pie: str, servers: Mapping[str, str], options: argparse.Namespace
) -> list[Series]:
    from openai import AsyncOpenAI

    from pie_trio.client import Client

    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    thoughts = Thoughts(options)
    texts = Texts(tokenizer)
    found: list[Series] = []
    async with AsyncExitStack() as stack:
        inferlets = await stack.enter_async_context(Client(pie))
        clients: dict[str, Completer] = {}
        for name, url in servers.items():
            openai = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
            await stack.enter_async_context(openai)
            is_pie = name == OPENAI_ROUTE
            bias = dict.fromkeys(end_tokens(options.model), -100.0) if is_pie else {}
            clients[name] = Completer(openai, tokenizer, bias)
        for technique in options.techniques:
            points: list[Point] = [
                {"technique": technique, "at once": count}
                for count in options.concurrency
            ]
            sides = (
                _sides_of_thoughts(inferlets, clients, thoughts, technique)
                if technique in THOUGHTS
                else _sides_of_example(
                    inferlets, clients, texts, STANDARD[technique], options.tokens
                )
            )
            found += await take_turns(sides, points, rounds=options.rounds)
    return found


class Thoughts:
    """Deliberations that nobody has asked for yet.

    Args:
        options: Lengths.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._tasks = Tasks(shared=options.shared, own=options.own)
        self._tokens: int = options.tokens
        asked = make_prompts(NUM_POINTS, NUM_ASKED, self._tasks.rng)
        self._points, self._step, self._judge = asked, asked[0], asked[1]

    def make(self, technique: str) -> Tree | Recursion | Graph | Skeleton:
        """Return one."""
        given = self._tasks.shared, self._tasks.next(), self._tokens
        if technique == "tree":
            return Tree(*given, step=self._step, judge=self._judge)
        if technique == "recursion":
            return Recursion(*given)
        if technique == "graph":
            return Graph(*given)
        return Skeleton(*given, points=self._points)


def _sides_of_thoughts(
    pie: Client, clients: Mapping[str, Completer], thoughts: Thoughts, technique: str
) -> dict[str, Side]:
    async def inside() -> int:
        made = thoughts.make(technique)
        return _check(int(await pie.call(technique, **made.arguments())), made.expected)

    async def outside(server: Completer) -> int:
        made = thoughts.make(technique)
        return _check(await made.run(server), made.expected)

    sides: dict[str, Side] = {"Pie": partial(_run, inside)}
    for name, client in clients.items():
        if name != SPECULATING:
            sides[name] = partial(_run, partial(outside, client))
    return sides


def _check(count: int, expected: int) -> int:
    if count != expected:
        raise RuntimeError(f"a technique generated {count} tokens, not {expected}")
    return count


def _sides_of_example(
    pie: Client,
    clients: Mapping[str, Completer],
    texts: Texts,
    standard: Standard,
    num_tokens: int,
) -> dict[str, Side]:
    (tokenizer,) = {client.tokenizer for client in clients.values()}

    async def inside() -> int:
        run = standard.make(texts, num_tokens)
        return await _run_example(pie, tokenizer, standard.example, run)

    async def outside(server: Completer) -> int:
        run = standard.make(texts, num_tokens)
        asked = (_ask(server, request) for request in run.requests)
        return sum(await asyncio.gather(*asked))

    sides: dict[str, Side] = {"Pie": partial(_run, inside)}
    for name, client in clients.items():
        if name == SPECULATING and standard is not STANDARD["speculation"]:
            continue
        if not (standard.needs and client.end_bias):
            sides[name] = partial(_run, partial(outside, client))
    return sides


async def _ask(server: Completer, request: Request) -> int:
    if request.streams:
        return await server.read(request.prompt, request.num_tokens, **request.extra)
    answer = await server.openai.completions.create(
        model="m",
        prompt=request.prompt,
        max_tokens=request.num_tokens,
        extra_body=dict(request.extra),
    )
    assert answer.usage is not None, "vLLM always tells it"
    return answer.usage.completion_tokens // len(answer.choices)


async def _run_example(
    pie: Client, tokenizer: Tokenizer, program: str, run: Run
) -> int:
    """Return about how many tokens came: those of the texts that it sends or returns."""
    from pie_trio.client import Message

    async with pie.run(program, **run.arguments) as events:
        sent = [str(e.content) async for e in events if isinstance(e, Message)]
        assert events.outcome is not None, "the loop ends with it"
        result = events.outcome.value
    texts = ["".join(sent)]
    if isinstance(result, list):
        texts = result
    elif isinstance(result, dict) and "text" in result:
        texts = [result["text"]]
    prompt = str(run.arguments.get("prompt", ""))
    told = (text.removeprefix(prompt) for text in texts)
    return sum(len(tokenizer.encode(text).ids) for text in told)


async def _run(one: Callable[[], Awaitable[int]], point: Point) -> dict[str, float]:
    counts: list[int] = []

    async def counted() -> int:
        counts.append(await one())
        return counts[-1]

    found = await run_at_once(int(point["at once"]), counted, expected=None)
    return {**found, "tokens": sum(counts) / len(counts)}
