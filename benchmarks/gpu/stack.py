"""Tokens a second through the whole stack: guests in Wasm, control layer, engine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
import trio

from benchmarks.gpu.models import SHAPES, open_random
from benchmarks.gpu.parts import PAGE_SIZE, floor_seconds
from benchmarks.harness import make_program, open_bare_launcher
from benchmarks.streams import PROGRAM, PROMPT_TOKENS, measure_engine, measure_guests
from pie_trio.inference.fake import FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.gpu.parts import Row
    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.gpu.choosing import DeviceName

REPEATS = 3


def whole_stack(
    device: DeviceName, *, is_small: bool, limits: Sequence[Row]
) -> list[Row]:
    """Measure decoding inferlets, as streams and step by step, beside a loop over the engine alone.

    Everything is one process, as ``pie run``. A figure includes launch and prefill of the guests; its
    ratio is to what the card could do at most, and ``of_engine`` to the loop.
    """
    names = ["tiny-64"] if is_small else ["llama-3.2-1b", "llama-3.1-8b"]
    sizes, tokens = ((1, 4), 16) if is_small else ((1, 32, 256), 128)
    rows: list[Row] = []
    for name in names:
        pages_each = -(-(PROMPT_TOKENS + tokens) // PAGE_SIZE) + 1
        engine = open_random(
            name,
            device=device,
            dtype=torch.bfloat16,
            num_pages=(max(sizes) + 4) * pages_each,
        )
        for size in sizes:
            found = trio.run(_measure, engine, size, tokens)
            context = PROMPT_TOKENS + tokens // 2
            copied, peak = (row["value"] for row in limits)
            floor = floor_seconds(name, size, context, copied, peak)
            for way, speed in found.items():
                rows.append(
                    {
                        "what": f"{name}, {size} inferlets, {way}",
                        "value": speed,
                        "unit": "tokens/s",
                        "ratio": speed * floor / size,
                        "of_engine": speed / found["engine alone"],
                    }
                )
        engine.close()
        del engine
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


class _Tokenizer(FakeTokenizer):
    """For any vocabulary: what tokens mean plays no part here."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        del skip_special_tokens
        return "x" * len(token_ids)


async def _measure(engine: TorchEngine, size: int, tokens: int) -> dict[str, float]:
    found: dict[str, list[float]] = {"engine alone": [], "stream": [], "stepwise": []}
    async with open_bare_launcher(engine=engine, tokenizer=_Tokenizer()) as launcher:
        await launcher.compile(make_program(PROGRAM))
        for way in ("stream", "stepwise"):  # what is set up at first use
            await measure_guests(
                launcher, guests=1, tokens=2, stepwise=way == "stepwise"
            )
        for _ in range(REPEATS):  # in turn, since other work comes and goes
            alone = measure_engine(engine, guests=size, tokens=tokens)
            found["engine alone"].append(alone.per_second)
            for way in ("stream", "stepwise"):
                figure = await measure_guests(
                    launcher, guests=size, tokens=tokens, stepwise=way == "stepwise"
                )
                found[way].append(figure.per_second)
    return {way: statistics.median(figures) for way, figures in found.items()}


def transformers(
    device: DeviceName, *, is_small: bool, limits: Sequence[Row]
) -> list[Row]:
    """Measure the continuous batching of transformers with the same shapes, for comparison."""
    library: Any = __import__("transformers")
    names = ["tiny-64"] if is_small else ["llama-3.2-1b", "llama-3.1-8b"]
    sizes, tokens = ((1, 4), 16) if is_small else ((1, 32, 256), 128)
    copied, peak = (row["value"] for row in limits)
    where = torch.device("cuda" if device == "cuda" else "cpu")
    rows: list[Row] = []
    for name in names:
        model = _random_transformer(library, name, where)
        page_size = PAGE_SIZE if is_small else 256  # its default
        pages_each = -(-(PROMPT_TOKENS + tokens) // page_size) + 1
        options = library.ContinuousBatchingConfig(
            page_size=page_size,
            num_blocks=max(sizes) * pages_each,
            max_batch_tokens=max(sizes) * PROMPT_TOKENS,
        )
        for size in sizes:
            prompts = [[*range(1, PROMPT_TOKENS + 1)]] * size
            seconds = [
                _generate(library, model, prompts, count, options)
                for count in (2, tokens)  # the first one sets things up
            ][-1]
            speed = size * tokens / seconds
            context = PROMPT_TOKENS + tokens // 2
            floor = floor_seconds(name, size, context, copied, peak)
            rows.append(
                {
                    "what": f"transformers, {name}, {size} prompts",
                    "value": speed,
                    "unit": "tokens/s",
                    "ratio": speed * floor / size,
                }
            )
        del model
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def _random_transformer(library: Any, name: str, where: torch.device) -> Any:
    config = library.LlamaConfig(**SHAPES[name])
    torch.set_default_device(where)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = library.LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
    model.set_attn_implementation("sdpa")
    return model


def _generate(
    library: Any, model: Any, prompts: list[list[int]], tokens: int, options: Any
) -> float:
    settings = library.GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    start = time.perf_counter()
    found = model.generate_batch(
        inputs=prompts,
        generation_config=settings,
        continuous_batching_config=options,
        progress_bar=False,
    )
    seconds = time.perf_counter() - start
    failed = [one.error for one in found.values() if one.error is not None]
    counts = {len(one.generated_tokens) for one in found.values()}
    if failed or counts != {tokens}:
        raise RuntimeError(f"expected {tokens} tokens each, got {counts} {failed[:1]}")
    return seconds
