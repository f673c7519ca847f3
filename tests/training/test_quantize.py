"""The model that is evaluated in 8 bits is the one that an engine serves in 8 bits."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.quantization import read
from pie_trio.inference.engine import open_engine
from tests.model_factory import LlamaShape, write_llama_directory
from training.export import load_model
from training.model import Linear, Llama
from training.quantize import Int8Llama

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from pie_trio.inference.engine import QuantizeName

TOKENS = [256, *b"Once upon a time there was"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = LlamaShape(hidden_size=64, intermediate_size=96, num_layers=1, head_dim=16)
    return write_llama_directory(tmp_path_factory.mktemp("models") / "m", shape)


def logits_of(model: Llama) -> np.ndarray:
    with torch.inference_mode():
        hidden = model(torch.tensor([TOKENS]), torch.float32)
        return model.logits(hidden[0]).numpy()


def engine_logits(folder: Path, quantize: QuantizeName | None) -> np.ndarray:
    engine = open_engine(
        folder, name="m", num_pages=4, num_threads=1, quantize=quantize
    ).engine
    return read(engine, TOKENS)


def rounded(rows: Tensor) -> Tensor:
    """Return rows of 255 steps each, between plus and minus their largest number."""
    steps = rows.abs().amax(-1, keepdim=True) / 127
    return (rows / steps).round() * steps


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_it_gives_the_logits_of_an_engine_in_8_bits(folder: Path) -> None:
    plain = load_model(folder)
    found = logits_of(Int8Llama(plain))
    # Where numbers lie between two steps, the smallest difference decides: few do.
    assert error(found, engine_logits(folder, "int8")) < 1e-3
    assert error(logits_of(plain), engine_logits(folder, None)) < 1e-5
    assert error(found, logits_of(plain)) > 5e-3, "it is in 8 bits indeed"


def test_it_computes_with_rounded_weights_and_inputs(folder: Path) -> None:
    found = logits_of(Int8Llama(load_model(folder)))
    reference = load_model(folder)

    def compute(linear: Linear, inputs: Tensor) -> Tensor:
        return functional.linear(rounded(inputs), rounded(linear.weight))

    for module in reference.modules():
        if isinstance(module, Linear):
            module.forward = MethodType(compute, module)  # type: ignore[method-assign]
    with torch.inference_mode():
        hidden = reference(torch.tensor([TOKENS]), torch.float32)[0]
        head = reference.embed_tokens.weight
        expected = functional.linear(rounded(hidden), rounded(head)).numpy()
    assert error(found, expected) < 1e-3


def test_the_model_that_it_is_made_of_stays_as_it_is(folder: Path) -> None:
    plain = load_model(folder)
    before = logits_of(plain)
    Int8Llama(plain)
    assert np.array_equal(logits_of(plain), before)
