"""Linear layers of bfloat16 in C++: the numbers of the plain layer, and each row for itself."""

from __future__ import annotations

import pytest
import torch

from pie_trio.inference.kernels.library import Library, load_build, usable_builds
from pie_trio.inference.kernels.native import NativeKernels
from pie_trio.inference.kernels.native_linear import NativeLinear, pack_native
from pie_trio.inference.models.ops import Linear

# Outputs are in blocks of 16 of which 3, 4 or 8 go together, rows in tiles of 8 and parts of 256,
# inputs in parts of 4096: some of each, and less than one.
SHAPES = ((1, 64), (16, 2), (48, 32), (272, 320), (333, 8194), (1040, 96))
ROWS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 31, 300)


@pytest.fixture(scope="module")
def library() -> Library:
    if "avx512_bf16" not in usable_builds():
        pytest.skip("this processor has no products of bfloat16")
    found = load_build("avx512_bf16")
    if isinstance(found, str):
        pytest.skip(found)
    return found


def make_layer(num_outputs: int, num_inputs: int, *, has_bias: bool) -> Linear:
    torch.manual_seed(num_outputs)
    weight = torch.randn(num_outputs, num_inputs).bfloat16()
    return Linear(weight, torch.randn(num_outputs).bfloat16() if has_bias else None)


def pack(layer: Linear, library: Library) -> NativeLinear:
    packed = pack_native(layer, library)
    assert packed is not None
    return packed


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_the_numbers_are_those_of_exact_sums_rounded_once(
    library: Library, num_outputs: int, num_inputs: int, has_bias: bool
) -> None:
    layer = make_layer(num_outputs, num_inputs, has_bias=has_bias)
    packed = pack(layer, library)
    bias = 0.0 if layer.bias is None else layer.bias.double()
    for num_rows in ROWS:
        inputs = torch.randn(num_rows, num_inputs).bfloat16()
        found = packed(inputs)
        assert found.shape == (num_rows, num_outputs)
        assert found.dtype == torch.bfloat16
        exact = inputs.double() @ layer.weight.double().T + bias
        # Half a unit in the last place, and what sums of float32 are off.
        allowed = exact.abs() * 2**-8 + 1e-5 * num_inputs**0.5
        assert ((found.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), SHAPES)
def test_no_row_depends_on_another_or_on_the_number_of_threads(
    library: Library, num_outputs: int, num_inputs: int, num_threads: int
) -> None:
    packed = pack(make_layer(num_outputs, num_inputs, has_bias=True), library)
    inputs = torch.randn(300, num_inputs).bfloat16()
    together = packed(inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for num_rows in (1, 2, 4, 7, 9):
            assert torch.equal(packed(inputs[:num_rows]), together[:num_rows])
        assert torch.equal(packed(inputs[257:]), together[257:])
    finally:
        torch.set_num_threads(before)


def test_inputs_need_not_lie_together(library: Library) -> None:
    packed = pack(make_layer(48, 320, has_bias=False), library)
    inputs = torch.randn(12, 640).bfloat16()
    for part in (inputs[:, :320], inputs[::3, 320:], inputs[:, ::2]):
        assert torch.equal(packed(part), packed(part.contiguous()))
    transposed = torch.randn(320, 12).bfloat16().T
    assert torch.equal(packed(transposed), packed(transposed.contiguous()))


def test_numbers_that_are_none_stay_where_they_are(library: Library) -> None:
    packed = pack(make_layer(48, 320, has_bias=False), library)
    inputs = torch.ones(3, 320).bfloat16()
    inputs[1, 7] = float("nan")
    found = packed(inputs)
    assert found[1].isnan().all()
    assert not found[[0, 2]].isnan().any()


def test_what_it_cannot_do_is_left_to_others(library: Library) -> None:
    whole = make_layer(320, 320, has_bias=False)
    assert pack_native(Linear(whole.weight.float()), library) is None
    odd = make_layer(320, 319, has_bias=False)
    assert pack_native(odd, library) is None
    kernels = NativeKernels(library)
    inputs = torch.randn(2, 319).bfloat16()
    found = kernels.pack_linear(odd)(inputs)
    torch.testing.assert_close(found, odd(inputs))
    assert isinstance(kernels.pack_linear(whole), NativeLinear)


def test_other_builds_have_none() -> None:
    for build in ("avx512", "avx2", "plain"):
        found = load_build(build)
        if isinstance(found, Library):
            assert not found.has_linear
            assert pack_native(make_layer(16, 16, has_bias=False), found) is None
