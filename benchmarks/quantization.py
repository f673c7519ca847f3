"""What `--quantize int8` costs in quality, on held-out documents of the corpus that pie-tiny has learned.

    python -m benchmarks.run quantization
    python -m benchmarks.run quantization --tasks 200 --label tasks

Each side is an engine as it is served. It reads each document at once, so that all sides predict each
token from the same ones before it. A round draws documents of its own from its number; the divergence is
Kullback and Leibler's, from the first side's distribution to the side's. With `--tasks`, two sides do
the tasks of `training.evaluate` instead, each as often as is said. Nothing here depends on time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer

import pie_trio
from benchmarks.pairing import Series
from benchmarks.reporting import Metric, Report
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec
from training.corpus import FAMILIES

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pie_trio.inference.engine import DtypeName, QuantizeName, TorchEngine

SIDES: Mapping[str, tuple[DtypeName, QuantizeName | None]] = {
    "float32": ("float32", None),
    "float32, int8": ("float32", "int8"),
    "bfloat16": ("bfloat16", None),
    "bfloat16, int8": ("bfloat16", "int8"),
}
"""The first one is what all others are compared with."""
BASE = "float32"
ALL, COMPLETIONS = "all", "all, completions"
PAGE_SIZE = 16
MAX_TOKENS = 4096
"""Longer documents are cut there."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What was found for some tokens, each array ``[num_tokens]``.

    Attributes:
        losses: Minus the log-probability of the token that follows, in nats.
        base_losses: The base's.
        divergences: From the base's distribution, in nats.
        is_same: Whether the base finds the same token most likely.
    """

    losses: NDArray[np.float64]
    base_losses: NDArray[np.float64]
    divergences: NDArray[np.float64]
    is_same: NDArray[np.bool_]

    def where(self, is_wanted: NDArray[np.bool_]) -> Compared:
        """Return what was found for some of them."""
        return Compared(
            self.losses[is_wanted],
            self.base_losses[is_wanted],
            self.divergences[is_wanted],
            self.is_same[is_wanted],
        )

    def figures(self) -> dict[str, float]:
        """Return the means by the names of the metrics."""
        more_loss = self.losses - self.base_losses
        return {
            "perplexity": math.exp(self.losses.mean()),
            "more loss": 1000.0 * float(more_loss.mean()),
            "divergence": 1000.0 * float(self.divergences.mean()),
            "same token": 100.0 * float(self.is_same.mean()),
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what is read, and by which model."""
    parser.add_argument(
        "--model",
        type=Path,
        default=Path(pie_trio.__file__).parent / "models" / "pie_tiny",
        help="a model of the corpus (default: pie-tiny)",
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument(
        "--count", type=int, default=20, help="documents of a family in a round"
    )
    parser.add_argument("--tasks", type=int, default=0, help="of each kind, to do")
    parser.add_argument("--threads", type=int, default=1, help="of torch")


def measure(options: argparse.Namespace) -> Report:
    """Measure all of it, or the tasks."""
    import torch  # here and below, so that the list of benchmarks can do without

    torch.set_num_threads(options.threads)
    return measure_tasks(options) if options.tasks else measure_documents(options)


def measure_documents(options: argparse.Namespace) -> Report:
    """Let each side read the same documents."""
    from pie_trio.inference.engine import open_engine

    engines = {
        side: open_engine(
            options.model,
            name=options.model.name,
            num_pages=-(-MAX_TOKENS // PAGE_SIZE),
            page_size=PAGE_SIZE,
            dtype=dtype,
            quantize=quantize,
            num_threads=options.threads,
        ).engine
        for side, (dtype, quantize) in SIDES.items()
    }
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    found: dict[tuple[str, str], Series] = {}
    for number in range(options.rounds):
        for family, side, figures in read_round(engines, tokenizer, options, number):
            series = found.setdefault((family, side), Series({"family": family}, side))
            for metric, value in figures.items():
                series.samples.setdefault(metric, []).append(value)
        print(f"  round {number}: measured", flush=True)
    for engine in engines.values():
        engine.close()
    return Report(
        title=f"the quality of int8, {options.model.name}",
        metrics=(
            Metric("perplexity", "", "less"),
            Metric("more loss", "nats a thousand tokens", "less"),
            Metric("divergence", "nats a thousand tokens", "less"),
            Metric("same token", "%", "more"),
        ),
        series=list(found.values()),
        base=BASE,
        x="family",
        settings={"documents of a family in a round": options.count},
        notes=[
            f"Rounds: {options.rounds}, each of other documents; in brackets 95 % confidence.",
            f"Loss, divergence and tokens are compared with {BASE}'s. `{COMPLETIONS}` are the tokens "
            "that the model would write itself.",
        ],
    )


def read_round(
    engines: Mapping[str, TorchEngine],
    tokenizer: Tokenizer,
    options: argparse.Namespace,
    number: int,
) -> list[tuple[str, str, dict[str, float]]]:
    """Return family, side and figures of the documents of a round.

    The documents of round 0 are those of which ``training.evaluate`` gives the perplexity.
    """
    from training.batches import encode
    from training.evaluate import held_out

    parts: dict[tuple[str, str], list[Compared]] = {}
    for family in options.families:
        for document in held_out(FAMILIES[family], options.count, seed=1 + number):
            all_ids, all_weights = encode(tokenizer, document)
            ids, weights = all_ids[: MAX_TOKENS + 1], all_weights[: MAX_TOKENS + 1]
            logits = {side: read(engine, ids[:-1]) for side, engine in engines.items()}
            is_completion = np.array(weights[1:]) >= 1
            for side in engines:
                compared = compare(logits[side], logits[BASE], ids[1:])
                completions = compared.where(is_completion)
                for name, part in (
                    (family, compared),
                    (ALL, compared),
                    (COMPLETIONS, completions),
                ):
                    parts.setdefault((name, side), []).append(part)
    names = [*options.families, ALL, COMPLETIONS]
    return [
        (name, side, _figures(parts[name, side], is_base=side == BASE))
        for name in names
        for side in engines
    ]


def _figures(parts: Sequence[Compared], *, is_base: bool) -> dict[str, float]:
    figures = Compared(
        np.concatenate([part.losses for part in parts]),
        np.concatenate([part.base_losses for part in parts]),
        np.concatenate([part.divergences for part in parts]),
        np.concatenate([part.is_same for part in parts]),
    ).figures()
    # What is compared with itself says nothing.
    return {"perplexity": figures["perplexity"]} if is_base else figures


def read(engine: TorchEngine, token_ids: Sequence[int]) -> NDArray[np.float32]:
    """Return ``[num_tokens, vocab_size]`` logits, of what follows each token."""
    num_tokens = len(token_ids)
    everywhere = np.arange(num_tokens, dtype=np.int32)
    forward = ForwardRequest(
        np.array(token_ids, np.int32),
        everywhere,
        np.arange(-(-num_tokens // PAGE_SIZE), dtype=np.int32),
        num_tokens,
        outputs=(OutputSpec(everywhere),),
    )
    return engine.forward_logits(Batch((forward,)))


def compare(
    logits: NDArray[np.float32], base: NDArray[np.float32], targets: Sequence[int]
) -> Compared:
    """Compare logits, ``[num_tokens, vocab_size]``, with those of the base.

    Args:
        logits: Of one side.
        base: Of the side that is compared with.
        targets: The tokens that did follow.
    """
    found, expected = log_softmax(logits), log_softmax(base)
    followed = np.arange(len(targets)), np.array(targets)
    return Compared(
        -found[followed],
        -expected[followed],
        (np.exp(expected) * (expected - found)).sum(1),
        logits.argmax(1) == base.argmax(1),
    )


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the logarithms of the probabilities of each row."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    normal: NDArray[np.float64] = shifted - np.log(
        np.exp(shifted).sum(1, keepdims=True)
    )
    return normal


def measure_tasks(options: argparse.Namespace) -> Report:
    """Let the model do the tasks of its evaluation, as it is and in 8 bits."""
    from training.evaluate import score_tasks
    from training.export import load_model
    from training.quantize import Int8Llama

    plain = load_model(options.model)
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for side, model in ((BASE, plain), (f"{BASE}, int8", Int8Llama(plain))):
        for family, figures in score_tasks(model, tokenizer, options.tasks).items():
            for figure, score in figures.items():
                scores.setdefault((family, figure), {})[side] = score
        print(f"  {side}: measured", flush=True)
    return Report(
        title=f"tasks in int8, {options.model.name}",
        metrics=(Metric("score", "%", "more"),),
        series=[
            Series({"family": family, "figure": figure}, side, {"score": [score]})
            for (family, figure), found in scores.items()
            for side, score in found.items()
        ],
        base=BASE,
        x="figure",
        settings={"documents a figure": options.tasks},
        notes=[f"A document more or less is {100 / options.tasks:.1f} %."],
    )
