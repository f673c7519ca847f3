"""What is said of int8's quality is what a plain computation finds, and is always the same."""

from __future__ import annotations

import argparse
import importlib
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pie_trio
from benchmarks.reporting import find, save

if TYPE_CHECKING:
    from benchmarks.reporting import Report

FAMILIES = ["talk", "labels"]


@pytest.fixture
def quantization(torch_is_there: None) -> Any:
    return importlib.import_module("benchmarks.quantization")


@pytest.fixture
def folder(torch_is_there: None, tmp_path: Path) -> Path:
    from tests.model_factory import LlamaShape, write_llama_directory

    shape = LlamaShape(2048, hidden_size=64, num_layers=1, head_dim=16)
    folder = write_llama_directory(tmp_path / "m", shape)
    tokenizer = Path(pie_trio.__file__).parent / "models/pie_tiny/tokenizer.json"
    shutil.copy(tokenizer, folder)  # the corpus needs its special tokens
    return folder


def measure(quantization: Any, folder: Path, *words: str) -> Report:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    quantization.add_options(parser)
    line = ["--model", str(folder), "--count", "2", "--families", *FAMILIES, *words]
    report: Report = quantization.measure(parser.parse_args(line))
    return report


def figures_of(report: Report, family: str, side: str) -> dict[str, list[float]]:
    series = find(report.series, {"family": family}, side)
    assert series is not None
    return series.samples


def test_figures_are_those_of_the_textbook(quantization: Any) -> None:
    rng = np.random.default_rng(3)
    one, base = rng.normal(size=(2, 5, 7)).astype(np.float32) * 4
    base[0] = one[0]  # of which nothing differs
    targets = rng.integers(0, 7, 5).tolist()
    losses, base_losses, divergences, same = [], [], [], []
    for logits, expected, target in zip(one, base, targets, strict=True):
        q = [math.exp(x) / sum(math.exp(y) for y in logits) for x in logits]
        p = [math.exp(x) / sum(math.exp(y) for y in expected) for x in expected]
        losses.append(-math.log(q[target]))
        base_losses.append(-math.log(p[target]))
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
        same.append(q.index(max(q)) == p.index(max(p)))
    assert 0 < sum(same) < 5, "some of each"
    found = quantization.compare(one, base, targets).figures()
    more = (sum(losses) - sum(base_losses)) / 5
    assert found == pytest.approx(
        {
            "perplexity": math.exp(sum(losses) / 5),
            "more loss": 1000 * more,
            "divergence": 1000 * sum(divergences) / 5,
            "same token": 100 * sum(same) / 5,
        }
    )


def test_what_is_the_same_does_not_diverge(quantization: Any) -> None:
    logits = np.arange(12, dtype=np.float32).reshape(3, 4) * 100  # exp of it overflows
    found = quantization.compare(logits, logits, [0, 1, 2]).figures()
    assert (found["more loss"], found["divergence"], found["same token"]) == (0, 0, 100)
    assert math.isfinite(found["perplexity"])


def test_the_perplexity_is_that_of_the_evaluation(
    quantization: Any, folder: Path
) -> None:
    """Of the first round, in float32 and in 8 bits: another decoder, another loss."""
    from tokenizers import Tokenizer

    from training.evaluate import perplexities
    from training.export import load_model
    from training.quantize import Int8Llama

    report = measure(quantization, folder, "--rounds", "1")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    plain = load_model(folder)
    found: dict[str, float] = {}
    for side, model in (("float32", plain), ("float32, int8", Int8Llama(plain))):
        for family, scores in perplexities(model, tokenizer, 2).items():
            if family in FAMILIES:
                (sample,) = figures_of(report, family, side)["perplexity"]
                found[side] = math.log(sample)
                expected = math.log(scores["perplexity"])
                assert found[side] == pytest.approx(expected, abs=2e-3)
    assert abs(found["float32"] - found["float32, int8"]) > 5e-3


def test_each_round_has_documents_of_its_own_and_is_repeated_exactly(
    quantization: Any, folder: Path
) -> None:
    report, again = (measure(quantization, folder) for _ in range(2))
    assert report == again
    first, second = figures_of(report, "talk", "float32")["perplexity"]
    assert first != second


def test_8_bits_cost_more_than_bfloat16_and_the_base_is_not_compared(
    quantization: Any, folder: Path
) -> None:
    report = measure(quantization, folder)
    for family in (*FAMILIES, "all", "all, completions"):
        assert list(figures_of(report, family, "float32")) == ["perplexity"]
        for side in ("float32, int8", "bfloat16, int8"):
            found = figures_of(report, family, side)
            less = figures_of(report, family, "bfloat16")
            assert min(found["divergence"]) > max(less["divergence"]) > 0
            assert 0 not in found["more loss"]


def test_all_is_the_mean_over_tokens_of_the_families(
    quantization: Any, folder: Path
) -> None:
    report = measure(quantization, folder, "--rounds", "1")
    one, other, both = (
        figures_of(report, family, "bfloat16, int8")["divergence"][0]
        for family in (*FAMILIES, "all")
    )
    assert min(one, other) < both < max(one, other)
    completions = figures_of(report, "all, completions", "bfloat16, int8")
    assert completions["divergence"][0] != both


def test_tasks_stand_side_by_side(
    quantization: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(model: object, tokenizer: object, count: int) -> dict[str, Any]:
        return {"code": {"runs": float(count), "is int8": type(model).__name__}}

    monkeypatch.setattr("training.evaluate.score_tasks", score)
    report = measure(quantization, folder, "--tasks", "3")
    found = [(s.point["figure"], s.side, s.samples["score"]) for s in report.series]
    assert found == [
        ("runs", "float32", [3.0]),
        ("runs", "float32, int8", [3.0]),
        ("is int8", "float32", ["Llama"]),
        ("is int8", "float32, int8", ["Int8Llama"]),
    ]


def test_results_are_kept(quantization: Any, folder: Path, tmp_path: Path) -> None:
    save(measure(quantization, folder), "quantization", tmp_path)
    entry = (tmp_path / "quantization.md").read_text()
    assert ": the quality of int8, m\n" in entry
    assert "in turn" not in entry, "nothing was timed"
