"""What the operations of a step cost in torch and in C++, microseconds a call.

    python -m benchmarks.kernels

The two take turns, so that both meet the same contention. ``cold``: as in a model, each call
finds memory that was not touched for long; the shapes are those of benchmarks.make_models'
rand-500m. The time is the processor's, of all threads: with --threads 1 it means something even
where others use the cores. The wall's time beside it is what a step waits for.
"""

from __future__ import annotations

import os
import statistics
import time
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.harness import describe_machine, make_parser
from pie_trio.engine_api import Batch, ForwardRequest
from pie_trio.inference.kernels.choosing import choose_kernels
from pie_trio.inference.kernels.linears import make_int8, pack
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.models.config import (
    AttentionConfig,
    DecoderConfig,
    LayerConfig,
)
from pie_trio.inference.models.ops import Linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, HIDDEN, INTERMEDIATE = 16, 8, 64, 1024, 2816
PAGE_SIZE = 16
COLD_BYTES = 64 << 20  # more than the caches hold
EPS = 1e-5


def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype: torch.dtype = getattr(torch, options.dtype)
    both = (choose_kernels("torch"), choose_kernels("native"))
    print(describe_machine())
    waits = os.environ.get("OMP_WAIT_POLICY", "unset")
    print(
        f"torch {torch.__version__}, {both[1].name}, {options.dtype}, {options.threads} "
        f"threads, OMP_WAIT_POLICY {waits}; median of {options.rounds} rounds"
    )
    with torch.inference_mode():
        for rows in (1, 8, 32, 512):
            compare(row_calls(both, rows, dtype), options.rounds)
        for size, context in ((1, 256), (8, 256), (32, 256), (1, 2048), (8, 2048)):
            compare(attention_calls(both, [context] * size, 1, dtype), options.rounds)
        for size, context, new in ((4, 128, 128), (1, 2048, 256)):
            compare(attention_calls(both, [context] * size, new, dtype), options.rounds)
        for rows in (1, 8, 32, 512):
            compare_linears(both[1], rows, dtype, options.rounds)


def compare(
    calls: Sequence[tuple[str, list[Callable[[], object]]]], rounds: int
) -> None:
    """Print one line for each operation: both implementations of it."""
    for name, implementations in calls:
        cells = []
        figures = measure(implementations, rounds)
        for cpu, wall in figures:
            cells.append(f"{cpu:9.1f} ({wall:.1f})")
        ratio = figures[0][0] / figures[1][0]
        print(f"{name:36} {cells[0]:>22} {cells[1]:>22} {ratio:6.1f}x", flush=True)


def measure(
    calls: Sequence[Callable[[], object]], rounds: int
) -> list[tuple[float, float]]:
    """Return for each the median microseconds a call: of the processor, and of the wall."""
    figures: list[list[tuple[float, float]]] = [[] for _ in calls]
    # As often as it takes to see it: the clock of the processor's time ticks slowly.
    counts = [max(1, round(2e-3 / one(call)[1])) for call in calls]
    for _ in range(rounds):
        for call, count, found in zip(calls, counts, figures, strict=True):
            cpu, wall = one(call, count)
            found.append((1e6 * cpu / count, 1e6 * wall / count))
    return [
        (statistics.median(f[0] for f in found), statistics.median(f[1] for f in found))
        for found in figures
    ]


def one(call: Callable[[], object], count: int = 1) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(count):
        call()
    return time.process_time() - cpu, time.perf_counter() - wall


def row_calls(
    both: tuple[Kernels, Kernels], rows: int, dtype: torch.dtype
) -> list[tuple[str, list[Callable[[], object]]]]:
    hidden = torch.randn(rows, HIDDEN).to(dtype)
    gate_up = torch.randn(rows, 2 * INTERMEDIATE).to(dtype)
    heads = torch.randn(rows, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM).to(dtype)
    heads = heads[:, : NUM_HEADS + NUM_KV_HEADS]
    angles = torch.randn(rows, 1, HEAD_DIM // 2)

    def rms_norm(kernels: Kernels) -> Callable[[], object]:
        weight = kernels.norm_weight(torch.ones(HIDDEN, dtype=dtype))
        return lambda: kernels.rms_norm(hidden, weight, EPS)

    def turn_heads(kernels: Kernels) -> Callable[[], object]:
        rotation = kernels.rotation(angles, 1.0, dtype)
        return lambda: kernels.turn_heads(heads, None, EPS, rotation)

    def gated(kernels: Kernels) -> Callable[[], object]:
        return lambda: kernels.gated(gate_up, "silu")

    def quantize(kernels: Kernels) -> Callable[[], object]:
        return lambda: kernels.quantize_rows(hidden)

    makers = (rms_norm, turn_heads, gated, quantize)
    return [
        (f"{make.__name__}, {rows} rows", [make(kernels) for kernels in both])
        for make in makers
    ]


def attention_calls(
    both: tuple[Kernels, Kernels],
    contexts: Sequence[int],
    new: int,
    dtype: torch.dtype,
) -> list[tuple[str, list[Callable[[], object]]]]:
    """Attention over as many layers, in turn, as it takes to find cold memory."""
    key_bytes = sum(contexts) * NUM_KV_HEADS * HEAD_DIM * 2 * dtype.itemsize
    config = model_config(min(48, max(1, COLD_BYTES // key_bytes)))
    counts = [-(-context // PAGE_SIZE) for context in contexts]
    pages = np.random.default_rng(0).permutation(sum(counts)).astype(np.int32)
    forwards = [
        ForwardRequest(
            token_ids=np.zeros(new, np.int32),
            positions=np.arange(context - new, context, dtype=np.int32),
            page_ids=page_ids,
            kv_len=context,
        )
        for context, page_ids in zip(
            contexts, np.split(pages, np.cumsum(counts)[:-1]), strict=True
        )
    ]
    batch = Batch(tuple(forwards))
    metadata = build_metadata(batch, PAGE_SIZE)
    num_tokens = new * len(contexts)
    heads = torch.randn(num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM).to(dtype)
    query, key, value = torch.split(
        heads, [NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS], dim=1
    )

    def attend(kernels: Kernels) -> Callable[[], object]:
        cache = kernels.allocate_kv_cache(
            config, num_pages=sum(counts), page_size=PAGE_SIZE, dtype=dtype
        )
        attention = kernels.plan_attention(batch, metadata, cache, config.attention)
        layers = cycle(range(config.num_layers))
        for layer in range(config.num_layers):  # memory that was never written is none
            attention(layer, query, key, value)
        return lambda: attention(next(layers), query, key, value)

    name = f"attention, {len(contexts)} x {new} tokens over {contexts[0]}"
    return [(name, [attend(kernels) for kernels in both])]


def compare_linears(
    kernels: Kernels, rows: int, dtype: torch.dtype, rounds: int
) -> None:
    """Gate and up of a layer: plain, packed by oneDNN, by the kernels, and in 8 bits."""
    count = max(1, COLD_BYTES // (2 * INTERMEDIATE * HIDDEN * dtype.itemsize))
    plain = [
        Linear(torch.randn(2 * INTERMEDIATE, HIDDEN).to(dtype)) for _ in range(count)
    ]
    inputs = torch.randn(rows, HIDDEN).to(dtype)

    def calls(layers: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[], object]:
        turns = cycle(layers)
        return lambda: next(turns)(inputs)

    forms = [
        calls(plain),
        calls([pack(linear) for linear in plain]),
        calls([kernels.pack_linear(linear) for linear in plain]),
        calls([make_int8(linear, kernels) for linear in plain]),
    ]
    cells = [f"{cpu:9.1f} ({wall:.1f})" for cpu, wall in measure(forms, rounds)]
    print(
        f"linear, {rows} rows: plain {cells[0]}, packed {cells[1]}, ours {cells[2]}, "
        f"int8 {cells[3]}"
    )


def model_config(num_layers: int) -> DecoderConfig:
    layers = (LayerConfig(),) * num_layers
    return DecoderConfig(
        architecture="LlamaForCausalLM",
        vocab_size=8,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        layers=layers,
        attention=AttentionConfig.of_layers(layers, scale=HEAD_DIM**-0.5, softcap=None),
        ropes=(),
        rms_norm_eps=EPS,
        norm_offset=0.0,
        activation="silu",
        embedding_scale=1.0,
        logit_softcap=None,
        has_qk_norm=False,
        has_post_norms=False,
        has_qkv_bias=False,
        has_output_bias=False,
        has_mlp_bias=False,
        is_packed=False,
        experts=None,
        max_positions=4096,
        tie_word_embeddings=True,
        stored_dtype=None,
    )


if __name__ == "__main__":
    main()
