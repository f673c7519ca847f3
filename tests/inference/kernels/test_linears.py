"""Linear layers in other forms: the same numbers, or nearly, and each row for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pie_trio.engine_api import Batch
from pie_trio.errors import ConfigError
from pie_trio.inference.engine import open_engine
from pie_trio.inference.kernels import linears
from pie_trio.inference.kernels.linears import (
    Int8Linear,
    PackedLinear,
    make_int8,
    pack,
    round_up_rows,
)
from pie_trio.inference.models.ops import Linear
from tests.inference.contexts import Context, generate
from tests.model_factory import LlamaShape, write_llama_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.kernels.protocol import Kernels

NUM_INPUTS, NUM_OUTPUTS = 320, 272
LARGE = LlamaShape(hidden_size=256, intermediate_size=320, num_heads=4, head_dim=64)


def make_linear(dtype: torch.dtype, *, has_bias: bool = True) -> Linear:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=generator)
    # Rows of different sizes need scales of their own.
    weight = weight * torch.logspace(-3, 1, NUM_OUTPUTS)[:, None]
    bias = torch.randn(NUM_OUTPUTS, generator=generator)
    return Linear(weight.to(dtype), bias.to(dtype) if has_bias else None)


def make_inputs(num_rows: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(num_rows, NUM_INPUTS, generator=generator)
    return (rows * torch.logspace(-2, 2, num_rows)[:, None]).to(dtype)


@pytest.fixture(autouse=True)
def needs_the_operations() -> None:
    if not linears._can_pack(torch.float32):
        pytest.skip("this torch keeps no weights laid out by oneDNN")


def test_there_are_few_numbers_of_rows_and_little_is_wasted() -> None:
    found = {n: round_up_rows(n) for n in range(1, 4097)}
    assert all(n <= rounded <= n * 33 / 32 for n, rounded in found.items())
    assert all(round_up_rows(rounded) == rounded for rounded in found.values())
    assert len(set(found.values())) < 260


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("num_rows", [1, 3, 33, 40, 300])
def test_packed_weights_give_the_same(
    dtype: torch.dtype, num_rows: int, has_bias: bool
) -> None:
    linear, inputs = make_linear(dtype, has_bias=has_bias), make_inputs(num_rows, dtype)
    packed = pack(linear)
    if dtype == torch.bfloat16 and not linears._can_pack(dtype):
        pytest.skip("this processor has no bfloat16")
    assert isinstance(packed, PackedLinear)
    exact = Linear(
        linear.weight.double(), None if linear.bias is None else linear.bias.double()
    )(inputs.double())
    error = (packed(inputs).double() - exact).abs() / exact.abs().clamp(min=1e-2)
    plain = (linear(inputs).double() - exact).abs() / exact.abs().clamp(min=1e-2)
    assert packed(inputs).dtype == dtype
    assert error.mean() <= 1.5 * plain.mean() + 1e-6


def test_inputs_need_not_lie_together() -> None:
    packed = pack(make_linear(torch.float32))
    inputs = make_inputs(6, torch.float32)
    torch.testing.assert_close(packed(inputs[::2]), packed(inputs[::2].contiguous()))
    transposed = inputs.T.contiguous().T
    torch.testing.assert_close(packed(transposed), packed(inputs))


def test_small_layers_stay_as_they_are() -> None:
    linear = Linear(torch.ones(8, 8))
    assert pack(linear) is linear


def test_what_torch_lacks_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "_can_pack", lambda dtype: False)
    linear = make_linear(torch.float32)
    assert pack(linear) is linear


@pytest.mark.parametrize("has_bias", [False, True])
def test_8_bits_err_by_a_hundredth(
    kernels: Kernels, dtype: torch.dtype, has_bias: bool
) -> None:
    linear, inputs = make_linear(dtype, has_bias=has_bias), make_inputs(9, dtype)
    rounded = make_int8(linear, kernels)
    found, exact = rounded(inputs), linear(inputs)
    assert found.dtype == dtype
    error = (found - exact).float().norm() / exact.float().norm()
    assert 1e-4 < error < 1.5e-2  # not exact either: it is in 8 bits indeed
    # And so does each row, whatever the sizes of the others are.
    errors = (found - exact).float().norm(dim=1) / exact.float().norm(dim=1)
    assert errors.max() < 2e-2


def test_in_8_bits_no_row_depends_on_another(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    rounded = make_int8(make_linear(dtype), kernels)
    inputs = make_inputs(9, dtype)
    together = rounded(inputs)
    for row in range(9):
        alone = rounded(inputs[row : row + 1])[0]
        assert torch.equal(alone, together[row])


def test_where_8_bits_are_not_possible_the_user_is_told(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linears, "_why_no_int8", lambda: "no such operation")
    with pytest.raises(ConfigError, match=r"no such operation.*without --quantize"):
        make_int8(make_linear(torch.float32), kernels)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose layers are large enough to be packed."""
    return write_llama_directory(tmp_path_factory.mktemp("models") / "large", LARGE)


def logits(engine: TorchEngine) -> np.ndarray:
    request = Context([0, 1]).feed([256, *b"Once upon a time"], rows=range(17))
    return engine.forward_logits(Batch((request,)))


def test_an_engine_with_packed_weights_gives_the_same(large: Path) -> None:
    engines = [
        open_engine(large, name="m", num_pages=8, kernels=name, num_threads=1).engine
        for name in ("torch", "auto")
    ]
    assert isinstance(engines[0]._open()[0].layers[0].qkv, PackedLinear)
    plain, built = map(logits, engines)
    np.testing.assert_allclose(plain, built, atol=1e-4)


def test_an_engine_in_8_bits_gives_nearly_the_same(large: Path) -> None:
    exact = open_engine(large, name="m", num_pages=8, num_threads=1).engine
    rounded = open_engine(
        large, name="m", num_pages=8, num_threads=1, quantize="int8"
    ).engine
    model, _, _ = rounded._open()
    assert isinstance(model.layers[1].qkv, Int8Linear)
    assert isinstance(model.head, Int8Linear)
    expected, found = logits(exact), logits(rounded)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.1


def test_in_8_bits_a_context_gives_the_same_alone_and_in_a_batch(large: Path) -> None:
    engine = open_engine(
        large, name="m", num_pages=12, num_threads=1, quantize="int8", kernels="auto"
    ).engine
    prompts = [b"Once upon a time", b"The", b"A very long beginning of a text"]
    alone = [
        generate(engine, [Context(range(4))], [prompt], 12)[0] for prompt in prompts
    ]
    contexts = [Context(range(4 * i, 4 * i + 4)) for i in range(3)]
    assert generate(engine, contexts, prompts, 12) == alone
