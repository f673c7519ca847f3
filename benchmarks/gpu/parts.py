"""The parts of :mod:`benchmarks.gpu.run_all`; each returns rows of a table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.models import RandomCheckpoint, open_random, read_shape
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, PageCopy, SamplerSpec
from pie_trio.errors import EngineError
from pie_trio.inference.gpu.step import GpuStep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.gpu.choosing import DeviceName

Row = dict[str, Any]

PAGE_SIZE = 16
SEED = 5
LAST = (OutputSpec(np.array([0], np.int32), SamplerSpec()),)


def roofline(device: DeviceName, *, is_small: bool) -> list[Row]:
    """Measure what the device can do at most: bytes copied and numbers multiplied a second."""
    where = torch.device("cuda" if device == "cuda" else "cpu")
    num_bytes = (64 << 20) if is_small else (4 << 30)
    source = torch.ones(num_bytes, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    seconds = best_time(lambda: target.copy_(source), where)
    rows = [{"what": "copy", "value": 2 * num_bytes / seconds / 1e9, "unit": "GB/s"}]
    size = 512 if is_small else 8192
    factors = torch.ones(size, size, dtype=torch.bfloat16, device=where)
    seconds = best_time(lambda: factors @ factors, where)
    rate = 2 * size**3 / seconds / 1e12
    return [*rows, {"what": "bf16 matrix", "value": rate, "unit": "TFLOP/s"}]


def best_time(
    run: Callable[[], object], device: torch.device, rounds: int = 8
) -> float:
    """Return the shortest of some runs, in seconds, by events where there are any."""
    run()
    times: list[float] = []
    for _ in range(rounds):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def equivalence(device: DeviceName, *, is_small: bool) -> list[Row]:
    """Compare the device with readable torch in float32 on the CPU, on the same random weights.

    The weights are bfloat16 numbers in both, so that what differs is how it is computed. The bound
    is that of rounding to bfloat16 a few dozen times.
    """
    del is_small
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows: list[Row] = []
    for name in ("tiny-64", "tiny-128"):
        engines = [
            open_random(
                name,
                device=where,
                dtype=kind,
                num_pages=128,
                weights=_Rounded(torch.device("cpu"), SEED),
                kernels=kernels,
            )
            for where, kind, kernels in (
                (device, dtype, "auto"),
                ("cpu", torch.float32, "torch"),
            )
        ]
        step = engines[0]._compute
        if isinstance(step, GpuStep):
            step.graphs.check()
        for case, batches in _cases().items():
            error = spread = 0.0
            for batch in batches:
                found, expected = (engine.forward_logits(batch) for engine in engines)
                if len(expected):
                    error = max(error, float(np.abs(found - expected).max()))
                    spread = max(spread, float(expected.std()))
            bound = (0.06 if dtype == torch.bfloat16 else 1e-4) * max(spread, 1e-3)
            rows.append(
                {
                    "what": f"{name} {case}",
                    "value": error / max(spread, 1e-9),
                    "unit": "of the deviation",
                    "is_ok": error <= bound,
                }
            )
        for engine in engines:
            engine.close()
    return rows


class _Rounded(RandomCheckpoint):
    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> torch.Tensor:
        return super().take(name, shape, torch.float32).bfloat16().to(dtype)


def _cases() -> dict[str, list[Batch]]:
    rng = np.random.default_rng(SEED)
    pages = rng.permutation(128).astype(np.int32).reshape(8, 16)

    def feed(row: int, start: int, count: int, mask: bool = False) -> ForwardRequest:
        hidden = None
        if mask:
            hidden = rng.random((count, start + count)) < 0.6
            hidden[:, -1] = True
        return ForwardRequest(
            rng.integers(0, 512, count).astype(np.int32),
            np.arange(start, start + count, dtype=np.int32),
            pages[row],
            start + count,
            hidden,
            (OutputSpec(np.arange(count, dtype=np.int32), SamplerSpec()),),
        )

    prefill = Batch(tuple(feed(row, 0, 20 + 17 * row) for row in range(6)))
    lengths = [20 + 17 * row for row in range(6)]
    decode = Batch(tuple(feed(row, lengths[row], 1) for row in range(6)))
    shared = np.concatenate((pages[5][:6], pages[7][:10]))
    forked = feed(7, 100, 3)
    forked.page_ids = shared
    copies = (PageCopy(int(pages[5][6]), int(shared[6]), 0, 0, 4),)
    chunks = [Batch((feed(6, 32 * part, 32),)) for part in range(4)]
    masked = [feed(row, lengths[row] + 1, 1, True) for row in range(4)]
    mixed = (*masked, feed(4, lengths[4] + 1, 9), feed(5, lengths[5] + 1, 5, True))
    later = [Batch(tuple(feed(r, lengths[r] + 14, 1) for r in (4, 5)))]
    return {
        "prefill": [prefill],
        "decode": [decode],
        "chunked": chunks,
        "forked": [Batch((forked,), copies)],
        "masked and mixed": [Batch(mixed)],
        "decode after a re-plan": [
            Batch((feed(4, lengths[4] + 10, 4), feed(5, lengths[5] + 6, 8))),
            *later,
        ],
    }


def engine_speed(
    device: DeviceName, *, is_small: bool, limits: Sequence[Row]
) -> list[Row]:
    """Measure decode steps at several batch sizes, as a ratio to the roofline."""
    names = (
        ["tiny-64"] if is_small else ["llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b"]
    )
    sizes, context = ((1, 4), 64) if is_small else ((1, 32, 256), 512)
    bandwidth, peak = (row["value"] for row in limits)
    rows: list[Row] = []
    for name in names:
        pages_each = -(-(context + 64) // PAGE_SIZE)
        engine = open_random(
            name,
            device=device,
            dtype=torch.bfloat16,
            num_pages=max(sizes) * pages_each,
        )
        for size in sizes:
            seconds = _step_seconds(engine, size, context, pages_each)
            floor = _floor_seconds(name, size, context, bandwidth, peak)
            rows.append(
                {
                    "what": f"{name}, batch {size}, context {context}",
                    "value": size / seconds,
                    "unit": "tokens/s",
                    "step_ms": 1000.0 * seconds,
                    "ratio": floor / seconds,
                }
            )
        engine.close()
        del engine
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def _step_seconds(
    engine: TorchEngine, size: int, context: int, pages_each: int
) -> float:
    """Return the median step; what the cache holds does not matter to how long one takes."""
    count = engine.info.num_pages // pages_each * pages_each
    table = np.random.default_rng(SEED).permutation(count).astype(np.int32)
    pages = table[: size * pages_each].reshape(size, pages_each)
    tokens = np.zeros(size, np.int32)
    times: list[float] = []
    for step in range(40):
        kv_len = context + step + 1
        batch = _decode(pages, tokens, kv_len)
        start = time.perf_counter()
        results = engine.execute(batch).forwards
        times.append(time.perf_counter() - start)
        for row, result in enumerate(results):
            if isinstance(result, EngineError):
                raise result
            tokens[row] = result[0].token_ids[0]
    return float(np.median(times[8:]))


def _decode(pages: NDArray[np.int32], tokens: NDArray[np.int32], kv_len: int) -> Batch:
    position = np.array([kv_len - 1], np.int32)
    return Batch(
        tuple(
            ForwardRequest(
                tokens[row : row + 1].copy(), position, table, kv_len, outputs=LAST
            )
            for row, table in enumerate(pages)
        )
    )


def _floor_seconds(
    name: str, size: int, context: int, bandwidth: float, peak: float
) -> float:
    """Return the shortest a step can take: all weights and keys read once, or all products."""
    config = read_shape(name)
    hidden, head_dim = config.hidden_size, config.head_dim
    heads = config.num_heads + 2 * config.num_kv_heads
    of_layer = hidden * head_dim * (heads + config.num_heads)
    of_layer += 3 * hidden * config.intermediate_size
    weights = config.num_layers * of_layer + hidden * config.vocab_size
    keys = 2 * config.num_layers * config.num_kv_heads * head_dim * context * size
    reading = 2 * (weights + keys) / (bandwidth * 1e9)
    return max(reading, 2 * weights * size / (peak * 1e12))
