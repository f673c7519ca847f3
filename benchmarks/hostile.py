"""What hostile inferlets take from well-behaved ones.

    python -m benchmarks.hostile --rounds 5

First 64 inferlets decode alone, half of them step by step and half with decode streams; then the same
beside hostile ones: one each that spins, allocates pages, floods calls, floods its output, never
reads, spawns children, compiles grammars, and floods topics. What counts is the rate of tokens of
the well-behaved, of which they are to keep 90 %. Alone and beside take turns, so that slow moments
of the machine hit both alike. The engine takes a fixed time for a step, as that of a model whose
weights are read from memory, and none of the processor. ``--one-owner`` lets all belong to one user:
then it is not the owner that is held back, but each instance.
"""

from __future__ import annotations

import gc
import statistics
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio

from benchmarks.harness import describe_machine, make_parser, make_program, spread
from benchmarks.policies import TimedEngine
from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.services import open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, WasmConfig
from pie_trio.errors import PieError
from pie_trio.inference.fake import FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pie_trio.application.host.session import Session
    from pie_trio.application.lifecycle.instances import Launcher

NUM_GOOD = 64
WARM_UP_SECONDS = 2.0

HEAD = "from inferlet_py import *\n@inferlet\nasync def main() -> None:\n"
GOOD = {
    "stepwise": (
        "    async with Context() as context:\n"
        "        dist = await context.forward(range(1, 17), top=4)\n"
        "        while True:\n"
        "            dist = await context.forward([dist.argmax()], top=4)\n"
        "            if len(context) > 400:\n"
        "                context.truncate(16)\n"
    ),
    "stream": (
        "    while True:\n"
        "        async with Context() as context:\n"
        "            context.append(range(1, 17))\n"
        "            await context.generate(max_tokens=500, stop_tokens=[]).tokens()\n"
    ),
}
HOSTILE = {
    "spin": "    while True: pass\n",
    "pages": (
        "    queue = Queue()\n"
        "    while True:\n"
        "        try:\n"
        "            queue.alloc_kvpages(4096)\n"
        "        except HostError:\n"
        "            await sleep(0.001)\n"
    ),
    "calls": "    while True: current_time()\n",
    "output": "    while True: print('x' * 1000)\n",
    "never reads": (
        "    contexts = [Context() for _ in range(8)]\n"
        "    streams = []\n"
        "    for context in contexts:\n"
        "        context.append(range(1, 17))\n"
        "        streams.append(context.generate(max_tokens=10000, stop_tokens=[]))\n"
        "    for stream in streams:\n"
        "        await stream.__anext__()\n"
        "    while True: broadcast('nobody', 'x' * 1000)\n"
    ),
    "children": (
        "    while True:\n"
        "        try:\n"
        "            async with spawn(): pass\n"
        "        except HostError:\n"
        "            await sleep(0.001)\n"
    ),
    "grammars": (
        "    for number in range(10**9):\n"
        "        try:\n"
        "            grammar = Grammar.regex('(a|b|c){1,%d}' % (number % 500 + 1))\n"
        "            async with await Processor.create(grammar=grammar): pass\n"
        "        except Exception:\n"
        "            await sleep(0.001)\n"
    ),
    "topics": (
        "    from contextlib import AsyncExitStack\n"
        "    async with AsyncExitStack() as stack:\n"
        "        try:\n"
        "            for _ in range(10**6):\n"
        "                await stack.enter_async_context(subscribe('t'))\n"
        "        except HostError:\n"
        "            pass\n"
        "        while True:\n"
        "            broadcast('t', 'x' * 10000)\n"
    ),
}


@asynccontextmanager
async def open_server(
    step_seconds: float, row_seconds: float
) -> AsyncGenerator[Launcher]:
    """Launch programs that may do everything, over an engine that takes a fixed time."""
    wasm, limits = WasmConfig(), InstanceLimits()
    path = prepare_language(wasm)
    engine = TimedEngine(step_seconds, row_seconds)
    with WasmRuntime(wasm, CompileCache(wasm.cache_directory)) as runtime:
        language = link_language(runtime, path)
        gc.collect()
        gc.freeze()  # as the server does
        async with (
            open_models(
                [LoadedEngine(engine, FakeTokenizer())], ControlConfig(), limits
            ) as models,
            open_services(models) as services,
            open_launcher(language, services, limits) as launcher,
        ):
            yield launcher


class Measured(NamedTuple):
    """What was measured.

    Attributes:
        tokens_per_second: Of the well-behaved.
        hostile_share: Part of a core that the others took.
        step_seconds: From one step to the next.
        loop_seconds: CPU time of the loop between two steps.
    """

    tokens_per_second: float
    hostile_share: float
    step_seconds: float
    loop_seconds: float


async def measure(
    launcher: Launcher, *, hostile: Sequence[str], seconds: float, is_one_owner: bool
) -> Measured:
    """Let the well-behaved run beside hostile programs of these names."""
    sessions: list[Session] = []
    hostile_sessions: list[Session] = []

    async def run(body: str, owner: str) -> None:
        program = make_program(HEAD + body)
        await launcher.compile(program)
        instance = launcher.prepare(program, {}, owner=owner)
        (sessions if body in GOOD.values() else hostile_sessions).append(
            instance.session
        )
        try:
            await instance.run()
        except PieError as error:
            print(f"    {owner} has ended: {error}")

    def count() -> int:
        return sum(
            tenant.num_sampled
            for session in sessions
            for tenant in session.tenants.values()
        )

    async with trio.open_nursery() as nursery:
        for number in range(NUM_GOOD):
            body = GOOD["stepwise" if number % 2 else "stream"]
            nursery.start_soon(run, body, "good")
        for name in hostile:
            owner = "good" if is_one_owner else f"hostile: {name}"
            nursery.start_soon(run, HOSTILE[name], owner)
        await trio.sleep(WARM_UP_SECONDS)
        (model,) = launcher.models.values()
        tokens, steps = count(), model.batcher.num_steps
        computed = cpu_seconds(hostile_sessions)
        started, cpu = time.perf_counter(), time.thread_time()
        await trio.sleep(seconds)
        elapsed, cpu = time.perf_counter() - started, time.thread_time() - cpu
        steps = model.batcher.num_steps - steps
        found = Measured(
            (count() - tokens) / elapsed,
            (cpu_seconds(hostile_sessions) - computed) / elapsed,
            elapsed / steps,
            cpu / steps,
        )
        nursery.cancel_scope.cancel()
    return found


def cpu_seconds(sessions: Sequence[Session]) -> float:
    """Return what these have computed so far, with their children."""
    accounts = [session.tree.account for session in sessions]
    return sum(account.used_seconds for account in accounts if account is not None)


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--step-ms", type=float, default=15.0)
    parser.add_argument("--row-us", type=float, default=100.0)
    parser.add_argument("--hostile", nargs="+", choices=HOSTILE, default=list(HOSTILE))
    parser.add_argument("--each", action="store_true", help="also one at a time")
    parser.add_argument("--one-owner", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    print(f"a step takes {options.step_ms} ms and {options.row_us} us a token")
    groups: list[tuple[str, ...]] = [tuple(options.hostile)]
    if options.each:
        groups += [(name,) for name in options.hostile]
    async with open_server(options.step_ms / 1e3, options.row_us / 1e6) as launcher:
        for group in groups:
            kept: list[float] = []
            for _ in range(options.rounds):
                alone, beside = [
                    await measure(
                        launcher,
                        hostile=names,
                        seconds=options.seconds,
                        is_one_owner=options.one_owner,
                    )
                    for names in ((), group)
                ]
                kept.append(beside.tokens_per_second / alone.tokens_per_second)
                for name, found in (("alone", alone), ("beside", beside)):
                    print(
                        f"    {name:6s} {found.tokens_per_second:5.0f} tokens/s, a step each "
                        f"{1e3 * found.step_seconds:.1f} ms, of which the loop computes "
                        f"{1e3 * found.loop_seconds:.1f} ms; the hostile compute for "
                        f"{100 * found.hostile_share:.1f} % of the time"
                    )
            print(
                f"{NUM_GOOD} inferlets keep {100 * statistics.median(kept):.1f} % "
                f"({spread([100 * k for k in kept])}) beside {', '.join(group)}"
            )


if __name__ == "__main__":
    trio.run(main)
