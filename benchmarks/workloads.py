"""Agents with a script: prompts, calls and lengths are given, so that all servers do the same.

Models with random weights decide nothing. So what is fixed is how many tokens an agent begins with,
generates before each call of a tool, and reads of its answer. Prompts are token ids, which no
server has to tokenize; an agent of a client gets the ids back that were generated, so that
prefix caches find each full block of what was said before.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import random
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.peers import make_prompts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from httpx2 import AsyncClient
    from openai import AsyncOpenAI

__all__ = ["CODE", "AgentClient", "Script", "Tasks", "run_at_once"]

CODE = "print(sum(i * i for i in range(500)))"
NUM_SWARM_AGENTS = 4


@dataclass(frozen=True, slots=True)
class Script:
    """What an agent does.

    Attributes:
        calls: Of tools.
        tokens: To generate before each call, and (but for a swarm) after the last.
        observed: Tokens of a tool's answer.
        tools: URL.
    """

    calls: int
    tokens: int
    observed: int
    tools: str


class Tasks:
    """Prompts: a part that all agents share, and one that nobody has seen."""

    def __init__(self, *, shared: int, own: int, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.shared = make_prompts(1, shared, self.rng)[0]
        self._own = own

    def next(self) -> list[int]:
        """Return a question that nobody has asked yet."""
        return make_prompts(1, self._own, self.rng)[0]


async def run_at_once(
    count: int, agent: Callable[[], Awaitable[int]], *, expected: int | None
) -> dict[str, float]:
    """Run agents at once.

    Args:
        count: How many.
        agent: Runs one; returns how many tokens it has generated.
        expected: As many must they be; None for any number.

    Returns:
        ``throughput`` in agents a second, ``latency``: their median in seconds.
    """
    latencies: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        generated = await agent()
        latencies.append(time.perf_counter() - began)
        if expected is not None and generated != expected:
            raise RuntimeError(f"an agent generated {generated} tokens, not {expected}")

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(one())
    seconds = time.perf_counter() - began
    return {"throughput": count / seconds, "latency": statistics.median(latencies)}


class AgentClient:
    """The agents as one writes them with a client of OpenAI's interface.

    Args:
        openai: Of the server.
        http: Reaches the tools.
    """

    def __init__(self, openai: AsyncOpenAI, http: AsyncClient) -> None:
        self._openai, self._http = openai, http

    async def react(self, prompt: Sequence[int], script: Script) -> int:
        """Generate, call a tool, read its answer, and so on."""
        return await self._act(prompt, script, str)

    async def codeact(self, prompt: Sequence[int], script: Script) -> int:
        """The same with code that runs before each call, here without any sandbox."""
        return await self._act(prompt, script, lambda _: _run(CODE))

    async def _act(
        self, prompt: Sequence[int], script: Script, prepare: Callable[[int], str]
    ) -> int:
        tokens, count = list(prompt), 0
        for number in range(script.calls + 1):
            said = await self._complete(tokens, script.tokens)
            count += len(said)
            tokens += said
            if number < script.calls:
                tokens += await self._call(script, prepare(number))
        return count

    async def functions(
        self, prompt: Sequence[int], script: Script, *, overlap: bool
    ) -> int:
        """Call functions one after the other, or start each as soon as it is written."""
        if not overlap:
            return await self.react(prompt, script)
        tokens, count = list(prompt), 0
        async with asyncio.TaskGroup() as group:
            calls: list[asyncio.Task[list[int]]] = []
            for number in range(script.calls):
                said = await self._complete(tokens, script.tokens)
                count += len(said)
                tokens += said
                calls.append(group.create_task(self._call(script, str(number))))
        for call in calls:
            tokens += call.result()
        return count + len(await self._complete(tokens, script.tokens))

    async def swarm(
        self, shared: Sequence[int], own: Sequence[int], script: Script
    ) -> int:
        """Let four agents, each with a transcript of its own, hand a task on."""
        transcripts = [list(shared) for _ in range(NUM_SWARM_AGENTS)]
        said, count = list(own), 0
        for number in range(script.calls):
            tokens = transcripts[number % NUM_SWARM_AGENTS]
            tokens += said
            said = await self._complete(tokens, script.tokens)
            count += len(said)
            tokens += said + await self._call(script, str(number))
        return count

    async def _complete(self, prompt: Sequence[int], num_tokens: int) -> list[int]:
        completion = await self._openai.completions.create(
            model="m",
            prompt=list(prompt),
            max_tokens=num_tokens,
            temperature=0,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        extra: dict[str, Any] = completion.choices[0].model_extra or {}
        return list(extra["token_ids"])

    async def _call(self, script: Script, argument: str) -> list[int]:
        found = await self._http.get(f"{script.tools}/tool/{argument}")
        return list((found.content * script.observed)[: script.observed])


def _run(code: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code, {})
    return output.getvalue().strip()
