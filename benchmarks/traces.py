"""Requests as they came to real services: time to the first token, between tokens, and goodput.

    python -m benchmarks.run traces --model MODELS/rand-60m --vllm VENV \\
        --traces AzureLLMInferenceTrace_conv.csv conversation_trace.jsonl --rates 1 2 4

Azure's trace (github.com/Azure/AzurePublicDataset, 2023) and Mooncake's (kvcache-ai/Mooncake). Lengths
shrink by --length, and gaps between requests until there are --rates requests a second. Requests
come whether or not earlier ones are done. Pie is asked for an inferlet, and by its OpenAI route with
the `openai` client, as vLLM is; there, ends are kept out by a bias. Goodput counts the requests that meet both limits.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import tempfile
import time
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks._traces import Request, Scale, read_trace
from benchmarks.agents import start_baselines
from benchmarks.pairing import take_turns
from benchmarks.peers import Starter
from benchmarks.reporting import Metric, Report
from benchmarks.serving import add_server_options, describe_servers, start_pie

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from openai import AsyncOpenAI

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.client import Client

    Complete = Callable[[Request], Awaitable["Times"]]

OPENAI_ROUTE = "Pie, OpenAI's route"
METRICS = (
    Metric("first token, median", "s", "less"),
    Metric("first token, p99", "s", "less"),
    Metric("between tokens, median", "ms", "less"),
    Metric("between tokens, p99", "ms", "less"),
    Metric("goodput", "requests/s", "more"),
)


@dataclass(frozen=True, slots=True)
class Times:
    """When the tokens of a request came.

    Attributes:
        first: Seconds from the request to its first token.
        between: Mean seconds between its tokens; 0 if there is one.
    """

    first: float
    between: float


class Stopwatch:
    """Measures one request.

    Args:
        expected: Tokens that have to come.
    """

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._began = time.perf_counter()
        self._first = self._last = 0.0

    def note(self) -> None:
        """Note that a token has come, or some."""
        self._last = time.perf_counter()
        self._first = self._first or self._last

    def read(self, num_tokens: int) -> Times:
        """Return the times of a request that has ended.

        Raises:
            RuntimeError: It has not all of its tokens.
        """
        if num_tokens != self._expected:
            raise RuntimeError(f"{num_tokens} tokens came, not {self._expected}")
        gaps = max(num_tokens - 1, 1)
        return Times(self._first - self._began, (self._last - self._first) / gaps)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the traces and how they are scaled."""
    add_server_options(parser)
    parser.add_argument("--traces", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="requests/s"
    )
    parser.add_argument("--requests", type=int, default=64, help="of each trace")
    parser.add_argument("--length", type=float, default=0.125, help="factor of lengths")
    parser.add_argument("--max-prompt", type=int, default=2048)
    parser.add_argument("--max-new", type=int, default=256)
    parser.add_argument(
        "--limit-first", type=float, default=1.0, help="seconds to the first token"
    )
    parser.add_argument(
        "--limit-between", type=float, default=0.1, help="seconds between tokens"
    )
    parser.set_defaults(uncached=False)


def measure(options: argparse.Namespace) -> Report:
    """Replay each trace at each rate."""
    files = {path.stem: path for path in options.traces}
    points: list[Point] = [
        {"trace": name, "rate": rate} for name in files for rate in options.rates
    ]
    with (
        tempfile.TemporaryDirectory(prefix="traces-") as folder,
        ExitStack() as stack,
    ):
        starter = Starter(Path(folder), stack)
        pie = start_pie(starter, options, ["completion"])
        servers = start_baselines(starter, options)
        series = asyncio.run(_take_turns(pie, servers, files, options, points))
    return Report(
        title=f"traces on {options.model.name}",
        metrics=METRICS,
        series=series,
        base="Pie",
        x="rate",
        settings={
            **describe_servers(options),
            "requests": options.requests,
            "lengths times": options.length,
            "limits": f"{options.limit_first:g} s, {options.limit_between:g} s a token",
        },
    )


async def _take_turns(
    pie: str,
    servers: Mapping[str, str],
    files: Mapping[str, Path],
    options: argparse.Namespace,
    points: list[Point],
) -> list[Series]:
    from openai import AsyncOpenAI

    from pie_trio.client import Client

    async with AsyncExitStack() as stack:
        inferlets = await stack.enter_async_context(Client(pie))
        completers: dict[str, Complete] = {"Pie": partial(_ask_pie, inferlets)}
        # The same client for all, so that what it costs is no difference.
        bias = {"logit_bias": dict.fromkeys(end_tokens(options.model), -100)}
        for name, url in {OPENAI_ROUTE: pie, **servers}.items():
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
            await stack.enter_async_context(client)
            extra = bias if name == OPENAI_ROUTE else {"ignore_eos": True}
            completers[name] = partial(_ask_openai, client, extra)
        # Each replay has texts of its own, or caches would know them all.
        seeds = itertools.count()
        sides: dict[str, Side] = {
            name: partial(_replay, complete, files, options, seeds)
            for name, complete in completers.items()
        }
        return await take_turns(sides, points, rounds=options.rounds)


async def _replay(
    complete: Complete,
    files: Mapping[str, Path],
    options: argparse.Namespace,
    seeds: Iterator[int],
    point: Point,
) -> dict[str, float]:
    scale = Scale(
        count=options.requests,
        per_second=float(point["rate"]),
        length=options.length,
        max_prompt=options.max_prompt,
        max_new=options.max_new,
    )
    requests = read_trace(files[str(point["trace"])], scale, seed=next(seeds))
    found: list[Times] = []
    began = time.perf_counter()

    async def one(request: Request) -> None:
        await asyncio.sleep(began + request.at - time.perf_counter())
        found.append(await complete(request))

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))
    seconds = time.perf_counter() - began
    return _summarize(found, seconds, options)


def _summarize(
    found: Sequence[Times], seconds: float, options: argparse.Namespace
) -> dict[str, float]:
    firsts, gaps = [x.first for x in found], [x.between * 1000 for x in found]
    good = sum(
        x.first <= options.limit_first and x.between <= options.limit_between
        for x in found
    )
    return {
        "first token, median": float(np.median(firsts)),
        "first token, p99": float(np.percentile(firsts, 99)),
        "between tokens, median": float(np.median(gaps)),
        "between tokens, p99": float(np.percentile(gaps, 99)),
        "goodput": good / seconds,
    }


async def _ask_pie(pie: Client, request: Request) -> Times:
    from pie_trio.client import Message

    watch = Stopwatch(request.num_new)
    arguments = {"prompt": request.prompt, "tokens": request.num_new}
    async with pie.run("completion", **arguments) as run:
        async for event in run:
            if isinstance(event, Message):
                watch.note()
        assert run.outcome is not None, "the loop ends with it"
        return watch.read(int(run.outcome.value))


def end_tokens(model: Path) -> list[str]:
    """Return the tokens that would end a text of a model."""
    found: int | list[int] | None = json.loads((model / "config.json").read_text()).get(
        "eos_token_id"
    )
    tokens = found if isinstance(found, list) else [found]
    return [str(token) for token in tokens if token is not None]


async def _ask_openai(
    openai: AsyncOpenAI, extra: Mapping[str, Any], request: Request
) -> Times:
    watch, num_tokens = Stopwatch(request.num_new), 0
    stream = await openai.completions.create(
        model="m",
        prompt=request.prompt,
        max_tokens=request.num_new,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=dict(extra),
    )
    async for chunk in stream:
        if chunk.choices:
            watch.note()
        if chunk.usage is not None:
            num_tokens = chunk.usage.completion_tokens
    return watch.read(num_tokens)
