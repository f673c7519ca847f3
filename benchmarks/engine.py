"""What the CPU engine does alone: greedy decoding of random prompts, without server and guests.

    python -m benchmarks.engine DIR/rand-60m DIR/rand-500m --concurrency 1 8 32

Each row is one choice of kernels and numbers; the rows take turns, so that all of them meet the
same contention. Tokens a second count the new tokens over the whole time, prefills included. So
does the time to the first token, which is the mean over requests that all come at once. The
processor's time of a step, of all threads, says something even where others use the cores, if
``OMP_WAIT_POLICY=PASSIVE`` keeps threads from spinning: divide it by their number.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from benchmarks.harness import describe_machine, make_parser, spread
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, SamplerSpec
from pie_trio.errors import EngineError
from pie_trio.inference.engine import open_engine

if TYPE_CHECKING:
    import argparse

    from numpy.typing import NDArray

    from pie_trio.inference.engine import DtypeName, QuantizeName, TorchEngine
    from pie_trio.inference.kernels.choosing import KernelsName

PAGE_SIZE = 16
LAST = (OutputSpec(np.array([0], np.int32), SamplerSpec()),)


@dataclass
class Row:
    """One choice, and what was measured: a number for each round."""

    kernels: KernelsName
    dtype: DtypeName
    quantize: QuantizeName | None
    engine: TorchEngine
    rates: list[float] = field(default_factory=list[float])
    steps: list[float] = field(default_factory=list[float])
    first: list[float] = field(default_factory=list[float])
    used: list[float] = field(default_factory=list[float])

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.kernels, self.dtype, self.quantize)))

    def forget(self) -> None:
        for figures in (self.rates, self.steps, self.first, self.used):
            figures.clear()


def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, help="model directories")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument(
        "--kernels", nargs="+", choices=("torch", "native"), default=["torch", "native"]
    )
    parser.add_argument(
        "--dtype", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16"]
    )
    parser.add_argument(
        "--quantize", nargs="+", choices=("none", "int8"), default=["none"]
    )
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--new", type=int, default=128, help="tokens to decode")
    parser.add_argument(
        "--chunk", type=int, default=512, help="tokens of a prefill step"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of a step (torch's choice)")
    options = parser.parse_args()
    print(describe_machine())
    print(f"torch {torch.__version__}; {torch.backends.cpu.get_cpu_capability()}")
    for model in options.models:
        print_model(model, options)


def print_model(model: Path, options: argparse.Namespace) -> None:
    most = max(options.concurrency)
    pages_each = -(-(options.prompt + options.new) // PAGE_SIZE)
    rows: list[Row] = []
    for kernels in options.kernels:
        for dtype in options.dtype:
            for quantize in options.quantize:
                chosen = cast("QuantizeName", None if quantize == "none" else quantize)
                engine = open_engine(
                    model,
                    name=model.name,
                    num_pages=most * pages_each,
                    page_size=PAGE_SIZE,
                    dtype=dtype,
                    num_threads=options.threads,
                    kernels=kernels,
                    quantize=chosen,
                ).engine
                rows.append(Row(kernels, dtype, chosen, engine))
    print(
        f"\n{model.name}: {options.prompt} + {options.new} tokens, median [quartiles]"
    )
    for concurrency in options.concurrency:
        for row in rows:
            row.forget()
            measure(row, concurrency, options, new=8)  # warm up
            row.forget()
        for _ in range(options.rounds):
            for row in rows:
                measure(row, concurrency, options, new=options.new)
        for row in rows:
            print(
                f"{concurrency:4} at once, {row.name:24} {spread(row.rates):>24} tok/s, "
                f"step {spread(row.steps)} ms, of all threads {spread(row.used)} ms; "
                f"first token after {spread(row.first)} s",
                flush=True,
            )
    for row in rows:
        row.engine.close()


def measure(row: Row, count: int, options: argparse.Namespace, *, new: int) -> None:
    """Prefill ``count`` prompts, a few in each step, then decode all of them in lock-step."""
    engine, prompt = row.engine, options.prompt
    rng = np.random.default_rng(1)
    pages_each = -(-(prompt + options.new) // PAGE_SIZE)
    page_ids = rng.permutation(engine.info.num_pages)[: count * pages_each]
    tables = page_ids.astype(np.int32).reshape(count, pages_each)
    prompts = rng.integers(0, engine.info.vocab_size, (count, prompt)).astype(np.int32)
    at_once = max(1, options.chunk // prompt)
    start = time.perf_counter()
    last: list[int] = []
    first: list[float] = []
    for begin in range(0, count, at_once):
        part = range(begin, min(begin + at_once, count))
        last += run(engine, [forward(tables[i], prompts[i], prompt) for i in part])
        first += [time.perf_counter() - start] * len(part)
    steps: list[float] = []
    used = time.process_time()
    for step in range(1, new):
        before = time.perf_counter()
        fed = np.array(last, np.int32)[:, None]
        forwards = [forward(tables[i], fed[i], prompt + step) for i in range(count)]
        last = run(engine, forwards)
        steps.append(time.perf_counter() - before)
    row.rates.append(count * new / (time.perf_counter() - start))
    row.steps.append(1000.0 * statistics.median(steps))
    row.first.append(statistics.mean(first))
    row.used.append(1000.0 * (time.process_time() - used) / (new - 1))


def forward(
    table: NDArray[np.int32], token_ids: NDArray[np.int32], kv_len: int
) -> ForwardRequest:
    num_tokens = len(token_ids)
    positions = np.arange(kv_len - num_tokens, kv_len, dtype=np.int32)
    row = np.array([num_tokens - 1], np.int32)
    outputs = LAST if num_tokens == 1 else (OutputSpec(row, SamplerSpec()),)
    return ForwardRequest(token_ids, positions, table, kv_len, outputs=outputs)


def run(engine: TorchEngine, forwards: list[ForwardRequest]) -> list[int]:
    """Run a step and return the tokens that were drawn."""
    tokens: list[int] = []
    for result in engine.execute(Batch(tuple(forwards))).forwards:
        if isinstance(result, EngineError):
            raise result
        tokens.append(int(result[0].token_ids[0]))
    return tokens


if __name__ == "__main__":
    main()
