"""What the built kernels promise beyond the contract, bit by bit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from pie_trio.errors import ConfigError
from pie_trio.inference.kernels import choosing, library
from pie_trio.inference.kernels.choosing import choose_kernels
from pie_trio.inference.kernels.native import MAX_HEAD_DIM, NativeKernels
from pie_trio.inference.kernels.reference import TorchKernels
from tests.inference.kernels.attention_cases import (
    Geometry,
    Part,
    Story,
    make_part,
    make_stories,
    run,
)
from tests.inference.kernels.conftest import BUILDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

GEOMETRIES = (
    Geometry(),
    Geometry(num_heads=12, num_kv_heads=1, head_dim=20, page_size=4),
    Geometry(windows=(90, None), softcap=2.0),
)
LENGTHS = (1, 64, 65, 130, 700)


def attend(
    native: NativeKernels,
    geometry: Geometry,
    chosen: Sequence[int],
    new: int,
    *,
    step: int = 10_000,
) -> list[list[Tensor]]:
    """Return the last ``new`` rows of some of the contexts, which run together.

    ``step`` is in how many tokens at once all of it is fed.
    """
    cache = geometry.cache(native, 300)
    all_stories = make_stories(geometry, [length + new for length in LENGTHS])
    whole = [
        make_part(story, length + new, length)
        for story, length in zip(all_stories, LENGTHS, strict=True)
    ]
    rows: list[list[Tensor]] = [[] for _ in chosen]
    stories = [Story(geometry, all_stories[i].page_ids) for i in chosen]
    longest = max(LENGTHS[i] + new for i in chosen)
    for start in range(0, longest, step):
        running = [n for n, i in enumerate(chosen) if start < LENGTHS[i] + new]
        parts = []
        for n in running:
            source, stop = whole[chosen[n]], start + step
            tensors = (source.query, source.key, source.value)
            query, key, value = (tensor[start:stop] for tensor in tensors)
            parts.append(Part(stories[n], query, key, value))
        sizes = [len(part.query) for part in parts]
        outputs = [torch.split(out, sizes) for out in run(native, cache, parts)]
        for place, n in enumerate(running):
            rows[n].append(torch.stack([out[place] for out in outputs], dim=1))
    return [list(torch.cat(parts)[-new:]) for parts in rows]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_a_token_reads_does_not_depend_on_its_batch(
    native: NativeKernels, geometry: Geometry
) -> None:
    together = attend(native, geometry, range(len(LENGTHS)), 3)
    for index in range(len(LENGTHS)):
        (alone,) = attend(native, geometry, [index], 3)
        assert all(map(torch.equal, alone, together[index]))


def test_what_a_token_reads_does_not_depend_on_how_its_context_was_fed(
    native: NativeKernels,
) -> None:
    geometry = Geometry(windows=(90, None))
    (at_once,) = attend(native, geometry, [3], 100)
    for step in (1, 7, 64):
        (in_steps,) = attend(native, geometry, [3], 100, step=step)
        assert all(map(torch.equal, at_once, in_steps))


def test_threads_change_nothing(native: NativeKernels) -> None:
    geometry = Geometry(num_heads=2, num_kv_heads=1, head_dim=64, windows=(None, 2100))
    results: list[list[Tensor]] = []
    for num_threads in (1, 2):
        torch.set_num_threads(num_threads)
        cache = geometry.cache(native, 180)
        (story,) = make_stories(geometry, [2700])
        outputs: list[Tensor] = []
        # With two threads the last token's chunks are read at once.
        for seed, size in enumerate([2600, 1]):
            outputs += run(native, cache, [make_part(story, size, seed)])
        results.append(outputs)
    assert all(map(torch.equal, *results))


def test_operations_on_rows_do_not_depend_on_other_rows(
    native: NativeKernels, dtype: torch.dtype
) -> None:
    rows = torch.randn(300, 1024, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = native.norm_weight(rows[0, :512])
    angles = rows[:, :16].float().unsqueeze(1)

    def turned(part: slice) -> Tensor:
        heads = rows[part].clone().view(-1, 16, 64)
        rotation = native.rotation(angles[part].contiguous(), 1.0, dtype)
        return native.turn_heads(heads, None, 1e-5, rotation)

    operations = (
        lambda part: native.rms_norm(rows[part, :512], weight, 1e-5),
        lambda part: native.gated(rows[part], "silu"),
        lambda part: native.gated(rows[part], "gelu_tanh"),
        lambda part: native.quantize_rows(rows[part])[0],
        lambda part: native.quantize_rows(rows[part])[1],
        turned,
    )
    for operation in operations:
        torch.set_num_threads(2)
        together = operation(slice(None))
        torch.set_num_threads(1)
        for row in (0, 1, 150, 299):
            assert torch.equal(operation(slice(row, row + 1))[0], together[row])


def test_a_mask_may_be_a_view_of_another_array(native: NativeKernels) -> None:
    geometry = Geometry()
    (story,) = make_stories(geometry, [40])
    mask = np.random.default_rng(0).random((40, 40)) < 0.5
    part = make_part(story, 40, 0, mask.T)
    expected = part.expected(0)
    (found,) = run(native, geometry.cache(native), [part])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_not_a_number_stays_one(native: NativeKernels, dtype: torch.dtype) -> None:
    rows = torch.ones(2, 64, dtype=dtype)
    rows[0, 5] = torch.nan
    weight = native.norm_weight(torch.ones(64))
    assert native.rms_norm(rows, weight, 1e-5).isnan().any(dim=1).tolist() == [
        True,
        False,
    ]
    assert native.gated(rows, "silu").isnan().any(dim=1).tolist() == [True, False]
    rotation = native.rotation(torch.zeros(2, 1, 32), 1.0, dtype)
    turned = native.turn_heads(rows.view(2, 1, 64), None, 1e-5, rotation)
    assert turned.isnan().flatten(1).any(dim=1).tolist() == [True, False]


def test_rounding_turns_no_nan_into_a_number(native: NativeKernels) -> None:
    weight = torch.full((64,), 0x7FFFFFFF, dtype=torch.int32).view(torch.float32)
    rows = torch.ones(2, 64, dtype=torch.bfloat16)
    assert native.rms_norm(rows, weight, 1e-5).isnan().all()


def test_without_a_library_torch_does_the_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(choosing, "find_library", lambda: "they were not built")
    assert isinstance(choose_kernels("auto"), TorchKernels)
    with pytest.raises(ConfigError, match=r"were not built.*--kernels torch"):
        choose_kernels("native")


def test_heads_that_are_too_large_go_to_torch() -> None:
    assert isinstance(choose_kernels("auto", head_dim=MAX_HEAD_DIM + 8), TorchKernels)


def test_a_library_of_another_version_is_refused(
    native: NativeKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = native.name.removeprefix("native (").removesuffix(")")
    monkeypatch.setattr(library, "_ABI", -1)
    found = library.load_build(build)
    assert isinstance(found, str)
    assert "another version" in found


def test_a_file_that_is_no_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_plain.so").write_text("no library")
    monkeypatch.setattr(library, "__file__", str(tmp_path / "library.py"))
    found = library.load_build("plain")
    assert isinstance(found, str)
    assert "cannot be loaded" in found
    assert "were not built" in str(library.load_build("avx2"))


def test_all_builds_are_built_by_an_installation_that_goes_on_without_them() -> None:
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text()
    modules = tomllib.loads(text)["tool"]["setuptools"]["ext-modules"]
    assert [module["name"] for module in modules] == [
        f"pie_trio.inference.kernels._{build}" for build in BUILDS
    ]
    assert all(module["optional"] for module in modules)
