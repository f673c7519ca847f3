"""What every implementation of the kernels does: compared with naive answers in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pie_trio.engine_api import PageCopy
from tests.inference.kernels.attention_cases import (
    Geometry,
    make_part,
    make_stories,
    run,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels
    from pie_trio.inference.models.config import Activation

EPS = 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def assert_close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Rounded once to bfloat16 or a few times in between; in float32 exact to the noise."""
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=tolerance, atol=tolerance
    )


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight.double()


@pytest.mark.parametrize("width", [8, 20, 64, 513])
def test_rms_norm(kernels: Kernels, dtype: torch.dtype, width: int) -> None:
    inputs = random(5, width, dtype=dtype)
    weight = random(width, dtype=dtype, seed=1)
    found = kernels.rms_norm(inputs, kernels.norm_weight(weight), EPS)
    assert_close(found, normed(inputs, weight), dtype)


def test_rms_norm_of_bfloat16_keeps_a_weight_of_float32(kernels: Kernels) -> None:
    inputs = random(3, 64, dtype=torch.bfloat16)
    weight = 1.0 + 1e-3 * random(64, seed=1)
    found = kernels.rms_norm(inputs, kernels.norm_weight(weight), EPS)
    expected = normed(inputs, weight).to(torch.bfloat16)
    assert (found == expected).float().mean() > 0.99  # ties may go the other way


@pytest.mark.parametrize("name", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("width", [12, 64])
def test_gated(
    kernels: Kernels, dtype: torch.dtype, name: Activation, width: int
) -> None:
    gate_up = 3.0 * random(4, 2 * width, dtype=dtype)
    gate_up[0, 0], gate_up[1, 1] = 200.0, -200.0  # where e^x is infinite
    gate, up = gate_up.double().chunk(2, dim=1)
    if name == "silu":
        activated = torch.nn.functional.silu(gate)
    else:
        activated = torch.nn.functional.gelu(gate, approximate="tanh")
    assert_close(kernels.gated(gate_up, name), activated * up, dtype)


@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize(("dim", "rotated"), [(8, 8), (20, 12), (64, 64), (96, 0)])
def test_turn_heads(
    kernels: Kernels, dtype: torch.dtype, is_normed: bool, dim: int, rotated: int
) -> None:
    # As in the decoder, what is turned is the front of a wider tensor.
    qkv = random(7, 5, dim, dtype=dtype)
    heads, rest = qkv[:, :3], qkv[:, 3:].clone()
    expected = heads.double()
    norm = rotation = None
    if is_normed:
        weight = random(3, dim, dtype=dtype, seed=1)
        norm = kernels.norm_weight(weight)
        expected = normed(expected, weight)
    if rotated:
        angles = 9.0 * random(7, 1, rotated // 2, seed=2)
        rotation = kernels.rotation(angles, 1.5, dtype)
        half = rotated // 2
        pairs = torch.complex(expected[..., :half], expected[..., half:rotated])
        turned = pairs * torch.polar(torch.full_like(angles, 1.5), angles)
        parts = (turned.real, turned.imag, expected[..., rotated:])
        expected = torch.cat(parts, dim=-1)
    found = kernels.turn_heads(heads, norm, EPS, rotation)
    assert_close(found, expected, dtype)
    assert torch.equal(qkv[:, 3:], rest)


def test_rows_are_quantized_each_by_its_own_scale(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    inputs = random(4, 50, dtype=dtype) * torch.tensor([[1e-3], [1.0], [50.0], [0.0]])
    inputs = inputs.to(dtype)
    quantized, scales = kernels.quantize_rows(inputs)
    assert quantized.dtype == torch.uint8
    assert scales.shape == (4, 1)
    back = (quantized.double() - 128.0) * scales.double()
    step = inputs.double().abs().amax(1, keepdim=True) / 127.0
    assert ((back - inputs.double()).abs() <= 0.501 * step + 1e-12).all()


@pytest.mark.parametrize("width", [5, 64, 70])
def test_rows_are_scaled_in_place(
    kernels: Kernels, dtype: torch.dtype, width: int
) -> None:
    rows, scales = random(4, width, dtype=dtype), random(4, 1, seed=1)
    expected = rows.double() * scales.double()
    found = kernels.scale_rows(rows, scales)
    assert_close(found, expected, dtype)
    assert torch.equal(found, rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_row_is_not_hidden_by_quantizing(
    kernels: Kernels, value: float
) -> None:
    inputs = random(3, 40)
    inputs[1, 37] = value
    _, scales = kernels.quantize_rows(inputs)
    assert scales.isfinite().flatten().tolist() == [True, False, True]


GEOMETRIES = {
    "plain": Geometry(),
    "one-head": Geometry(num_heads=1, num_kv_heads=1, head_dim=64),
    "wide-group": Geometry(num_heads=11, num_kv_heads=1, head_dim=16),
    "odd-dim": Geometry(num_heads=4, head_dim=44),
    "large-dim": Geometry(num_heads=2, num_kv_heads=1, head_dim=256),
    "tiny-pages": Geometry(page_size=4, head_dim=8),
    "odd-pages": Geometry(page_size=5, head_dim=12),
    "wide-pages": Geometry(page_size=32, head_dim=80),
    "windows": Geometry(windows=(7, None, 70)),
    "soft-cap": Geometry(softcap=2.0),
    "all-at-once": Geometry(
        num_heads=8, page_size=8, windows=(None, 33), softcap=1.5, head_dim=24
    ),
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_attention_over_contexts_that_grow(
    kernels: Kernels, dtype: torch.dtype, name: str, is_masked: bool
) -> None:
    geometry = Geometry(**{**vars(GEOMETRIES[name]), "dtype": dtype})
    cache = geometry.cache(kernels)
    stories = make_stories(geometry, [30, 130, 150])
    rng = np.random.default_rng(3)
    # Prefills, then a mix of decodes and chunks, then decodes.
    for step, sizes in enumerate([(17, 70, 100), (1, 1, 20), (5, 40, 1), (1, 1, 1)]):
        parts = []
        for index, (story, size) in enumerate(zip(stories, sizes, strict=True)):
            mask = None
            if is_masked and index != 1:
                mask = rng.random((size, len(story) + size)) < 0.3
                mask[:, -1] = True
            parts.append(make_part(story, size, 10 * step + index, mask))
        layers = range(len(geometry.windows))
        expected = [torch.cat([p.expected(layer) for p in parts]) for layer in layers]
        for found, wanted in zip(run(kernels, cache, parts), expected, strict=True):
            assert_close(found, wanted, dtype)


def test_attention_over_a_context_of_several_chunks(kernels: Kernels) -> None:
    geometry = Geometry(num_heads=2, num_kv_heads=1, head_dim=16, windows=(None, 1500))
    cache = geometry.cache(kernels, 150)
    (story,) = make_stories(geometry, [2400])
    for step, size in enumerate([2300, 3, 1]):
        part = make_part(story, size, step)
        expected = [part.expected(layer) for layer in range(2)]
        for found, wanted in zip(run(kernels, cache, [part]), expected, strict=True):
            assert_close(found, wanted, torch.float32)


def test_a_token_whose_window_holds_nothing_reads_zeros(kernels: Kernels) -> None:
    geometry = Geometry(windows=(2,))
    (story,) = make_stories(geometry, [9])
    mask = np.zeros((9, 9), np.bool_)
    mask[:, 0] = True
    part = make_part(story, 9, 0, mask)
    (found,) = run(kernels, geometry.cache(kernels), [part])
    assert not found[2:].any()
    assert found[:2].any(dim=1).all()


def test_equal_scores_of_any_size_do_not_overflow(kernels: Kernels) -> None:
    geometry = Geometry()
    (story,) = make_stories(geometry, [20])
    part = make_part(story, 20, 0)
    part.query.mul_(1e4)
    (found,) = run(kernels, geometry.cache(kernels), [part])
    assert found.isfinite().all()


@pytest.mark.parametrize("page_size", [4, 16])
def test_pages_are_copied_cleared_and_moved(
    kernels: Kernels, dtype: torch.dtype, page_size: int
) -> None:
    geometry = Geometry(page_size=page_size, windows=(None, None), dtype=dtype)
    cache = geometry.cache(kernels)
    (story,) = make_stories(geometry, [2 * page_size])
    run(kernels, cache, [make_part(story, page_size + 2, 0)])
    first, second = story.page_ids.tolist()
    free = [page for page in range(8) if page not in (first, second)]
    # The copy of a prefix, and tokens that move within a page.
    cache.copy(
        [
            PageCopy(first, free[0], 0, 0, page_size),
            PageCopy(second, free[1], 0, 1, 2),
            PageCopy(free[1], free[1], 1, 0, 2),
        ]
    )
    saved = cache.read(torch.tensor([free[0], free[1]]))
    cache.clear(torch.arange(free[0] * page_size, (free[0] + 1) * page_size))
    cache.write(torch.tensor([free[2], free[3]]), saved)
    assert torch.equal(cache.read(torch.tensor([free[2], free[3]])), saved)
    assert not cache.read(torch.tensor([free[0]])).any()
    story.page_ids = np.array([free[2], free[3]], np.int32)
    part = make_part(story, 1, 1)
    expected = [part.expected(layer) for layer in range(2)]
    for found, wanted in zip(run(kernels, cache, [part]), expected, strict=True):
        assert_close(found, wanted, dtype)


def test_some_slots_of_a_page_are_cleared_and_no_others(kernels: Kernels) -> None:
    geometry = Geometry(windows=(None, None))
    cache = geometry.cache(kernels)
    (story,) = make_stories(geometry, [16])
    run(kernels, cache, [make_part(story, 16, 0)])
    first = int(story.page_ids[0]) * 16
    cache.clear(torch.tensor([first + 3, first + 9]))
    story.keys[0][[3, 9]] = 0.0
    story.values[0][[3, 9]] = 0.0
    mask = np.ones((1, 17), np.bool_)
    story.page_ids = np.array([*story.page_ids, (story.page_ids[0] + 1) % 8], np.int32)
    part = make_part(story, 1, 1, mask)
    expected = [part.expected(layer) for layer in range(2)]
    for found, wanted in zip(run(kernels, cache, [part]), expected, strict=True):
        assert_close(found, wanted, torch.float32)
