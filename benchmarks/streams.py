"""Tokens a second of ``generate``: as a stream, step by step, and of the engine alone.

    python -m benchmarks.streams --guests 1 8 32 --tokens 128 --repeats 5

The engine alone runs one batch of as many sequences in a loop. With ``--null`` the engine costs
nothing: then the figure is what the host and the guests cost. The CPU time of a token is that of
all threads; beside other work it says more than the tokens a second.
"""

from __future__ import annotations

import json
import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import trio

from benchmarks.harness import (
    NullEngine,
    describe_machine,
    make_parser,
    make_program,
    open_bare_launcher,
    spread,
)
from pie_trio.application.run.setup import default_model, load_engine
from pie_trio.application.serving import LoadedEngine
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, SamplerSpec
from pie_trio.inference.fake import FakeTokenizer

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.engine_api import Engine

PROMPT_TOKENS = 16
PROGRAM = """
from inferlet_py import Context, inferlet

@inferlet
async def main(tokens: int, prompt: int, stepwise: bool) -> int:
    async with Context() as context:
        context.append(range(1, prompt + 1))
        generation = context.generate(max_tokens=tokens, stop_tokens=[], stepwise=stepwise)
        return len(await generation.tokens())
"""


class Figure(NamedTuple):
    per_second: float
    cpu_us: float  # of a token


class Clock:
    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, tokens: int) -> Figure:
        wall = time.perf_counter() - self._wall
        return Figure(tokens / wall, (time.process_time() - self._cpu) / tokens * 1e6)


async def measure_guests(
    launcher: Launcher, *, guests: int, tokens: int, stepwise: bool
) -> Figure:
    """Return the figure of all guests together, launches included."""
    program = make_program(PROGRAM)
    arguments = {"tokens": tokens, "prompt": PROMPT_TOKENS, "stepwise": stepwise}

    async def one() -> None:
        count = json.loads(await launcher.prepare(program, arguments).run())
        assert count == tokens

    clock = Clock()
    async with trio.open_nursery() as nursery:
        for _ in range(guests):
            nursery.start_soon(one)
    return clock.read(guests * tokens)


def measure_engine(engine: Engine, *, guests: int, tokens: int) -> Figure:
    """Return the figure of a loop over the engine, with its prefill."""
    size = engine.info.page_size
    num_pages = -(-(PROMPT_TOKENS + tokens) // size)
    pages = np.arange(guests * num_pages, dtype=np.int32).reshape(guests, num_pages)
    last = [np.arange(1, PROMPT_TOKENS + 1, dtype=np.int32)] * guests
    kv_len, clock = PROMPT_TOKENS, Clock()
    for _ in range(tokens):
        count = len(last[0])
        positions = np.arange(kv_len - count, kv_len, dtype=np.int32)
        outputs = (OutputSpec(np.array([count - 1], np.int32), SamplerSpec()),)
        forwards = tuple(
            ForwardRequest(last[row], positions, pages[row], kv_len, outputs=outputs)
            for row in range(guests)
        )
        results = engine.execute(Batch(forwards)).forwards
        last = [result[0].token_ids for result in results if isinstance(result, tuple)]
        kv_len += 1
    return clock.read(guests * tokens)


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--guests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--null", action="store_true")
    options = parser.parse_args()
    print(describe_machine())
    loaded = (
        LoadedEngine(NullEngine(), FakeTokenizer())
        if options.null
        else load_engine(default_model())
    )
    engine = loaded.engine
    print(f"  {engine.info.name}, {options.tokens} tokens, tokens a second")
    async with open_bare_launcher(
        engine=engine, tokenizer=loaded.tokenizer
    ) as launcher:
        await launcher.compile(make_program(PROGRAM))
        for guests in options.guests:
            found: dict[str, list[Figure]] = {
                "stream": [],
                "stepwise": [],
                "engine": [],
            }
            for _ in range(options.repeats):  # in turn, since other work comes and goes
                for name in ("stream", "stepwise"):
                    figure = await measure_guests(
                        launcher,
                        guests=guests,
                        tokens=options.tokens,
                        stepwise=name == "stepwise",
                    )
                    found[name].append(figure)
                found["engine"].append(
                    measure_engine(engine, guests=guests, tokens=options.tokens)
                )
            bare = found["engine"]
            for name, figures in found.items():
                pairs = zip(figures, bare, strict=True)
                ratio = statistics.median(a.per_second / b.per_second for a, b in pairs)
                speed = spread([figure.per_second for figure in figures])
                cpu = spread([figure.cpu_us for figure in figures])
                print(
                    f"  {guests:3d} guests  {name:9s} {speed:28s} {ratio:.2f}  "
                    f"CPU us a token {cpu}"
                )


if __name__ == "__main__":
    trio.run(main)
