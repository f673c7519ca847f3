"""The parts of :mod:`benchmarks.gpu.run_all`; each returns rows of a table."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.models import open_random, read_shape
from pie_trio.engine_api import (
    NO_REQUEST,
    Batch,
    ForwardRequest,
    OutputSpec,
    SamplerSpec,
)
from pie_trio.errors import EngineError

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
            for is_ahead in (False, True) if engine.can_follow(LAST) else (False,):
                seconds = _step_seconds(engine, size, context, pages_each, is_ahead)
                floor = floor_seconds(name, size, context, bandwidth, peak)
                way = ", one step ahead" if is_ahead else ""
                rows.append(
                    {
                        "what": f"{name}, batch {size}, context {context}{way}",
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
    engine: TorchEngine, size: int, context: int, pages_each: int, is_ahead: bool
) -> float:
    """Return the median step; what the cache holds does not matter to how long one takes."""
    count = engine.info.num_pages // pages_each * pages_each
    table = np.random.default_rng(SEED).permutation(count).astype(np.int32)
    pages = table[: size * pages_each].reshape(size, pages_each)
    tokens = np.zeros(size, np.int32)
    times: list[float] = []
    for step in range(40):
        start = time.perf_counter()
        batch = _decode(
            pages, tokens, context + step + 1, follows=is_ahead and step > 0
        )
        if is_ahead:
            engine.submit(batch)
            result = engine.collect() if step else None
        else:
            result = engine.execute(batch)
        times.append(time.perf_counter() - start)
        for row, found in enumerate(result.forwards if result else ()):
            if isinstance(found, EngineError):
                raise found
            tokens[row] = found[0].token_ids[0]
    if is_ahead:
        engine.collect()
    return float(np.median(times[8:]))


def _decode(
    pages: NDArray[np.int32], tokens: NDArray[np.int32], kv_len: int, *, follows: bool
) -> Batch:
    position = np.array([kv_len - 1], np.int32)
    return Batch(
        tuple(
            ForwardRequest(
                tokens[row : row + 1].copy(),
                position,
                table,
                kv_len,
                outputs=LAST,
                follows=row if follows else NO_REQUEST,
            )
            for row, table in enumerate(pages)
        )
    )


def floor_seconds(
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
