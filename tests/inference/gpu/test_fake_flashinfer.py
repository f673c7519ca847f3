"""The fake finds misuse, and has the signatures of the library where that is installed."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from pie_trio.inference.gpu import planning
from tests.inference.gpu.fake_flashinfer import (
    DecodeWrapper,
    FakeFlashInfer,
    MisuseError,
    PrefillWrapper,
)
from tests.inference.gpu.fakes import fake_kernels
from tests.inference.kernels.attention_cases import (
    Geometry,
    make_part,
    make_stories,
    run,
)

GEOMETRY = Geometry(num_heads=4, num_kv_heads=2, head_dim=64, dtype=torch.bfloat16)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def decode_wrapper(**options: Any) -> DecodeWrapper:
    workspace = torch.zeros(64, dtype=torch.uint8)
    options = {"backend": "fa2", **options}
    return FakeFlashInfer().BatchDecodeWithPagedKVCacheWrapper(workspace, **options)


def plan(wrapper: DecodeWrapper, **changes: Any) -> None:
    arguments: dict[str, Any] = {
        "indptr": int32(0, 2),
        "indices": int32(3, 1),
        "last_page_len": int32(2),
        "num_qo_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 64,
        "page_size": 4,
        "q_data_type": torch.bfloat16,
        "seq_lens": int32(6),
    }
    wrapper.plan(**{**arguments, **changes})


CACHE = tuple(torch.zeros(8, 4, 2, 64, dtype=torch.bfloat16) for _ in range(2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indptr": torch.tensor([0, 2])}, "indptr is torch.int64"),
        ({"indices": int32(3)}, "indices has 1 numbers"),
        ({"seq_lens": int32(7)}, "seq_lens are not those of the pages"),
        ({"q_data_type": "float16"}, "q_data_type is float16"),
        ({"q_data_type": torch.float32}, "q_data_type is torch.float32"),
        ({"head_dim": 80}, "no kernel for heads of 80"),
        ({"num_qo_heads": 14}, "no kernel for groups of 7"),
    ],
)
def test_a_plan_that_the_library_would_refuse_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(MisuseError, match=message):
        plan(decode_wrapper(), **changes)


def test_a_run_needs_a_plan_of_its_batch() -> None:
    wrapper = decode_wrapper()
    query = torch.zeros(1, 4, 64, dtype=torch.bfloat16)
    with pytest.raises(MisuseError, match="run comes after plan"):
        wrapper.run(query, CACHE)
    plan(wrapper)
    wrapper.run(query, CACHE)
    with pytest.raises(MisuseError, match="planned 1 rows, got 2"):
        wrapper.run(query.repeat(2, 1, 1), CACHE)
    with pytest.raises(MisuseError, match="planned another dtype"):
        wrapper.run(query.half(), CACHE)


def test_another_backend_by_chance_is_refused() -> None:
    with pytest.raises(MisuseError, match="backend auto"):
        decode_wrapper(backend="auto")


def masked_difference() -> float:
    """Return how far two masked requests of a batch are from what they should be."""
    kernels = fake_kernels(FakeFlashInfer())
    stories = make_stories(GEOMETRY, [20, 30])
    rng = np.random.default_rng(0)
    parts = []
    for index, (story, size) in enumerate(zip(stories, (5, 7), strict=True)):
        mask = rng.random((size, size)) < 0.5
        mask[:, -1] = True
        parts.append(make_part(story, size, index, mask))
    expected = torch.cat([part.expected(0) for part in parts])
    (found,) = run(kernels, GEOMETRY.cache(kernels), parts)
    return float((found.double() - expected).abs().max())


def test_masks_of_the_second_request_are_where_the_kernel_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The library counts in bits where the kernel counts in bytes; we put that right."""
    assert masked_difference() < 0.02

    def plan_as_documented(  # without the correction
        wrapper: Any,
        group: Any,
        page_ids: Any,
        cache: Any,
        options: Any,
        bits: Any,
        _: Any,
    ) -> None:
        masked = {**options, "causal": False, "packed_custom_mask": bits}
        planning.plan_prefill(wrapper, group, page_ids, cache, masked)

    monkeypatch.setattr(planning, "plan_masked", plan_as_documented)
    with pytest.raises(MisuseError, match="a mask beyond the bits"):
        masked_difference()


@pytest.mark.parametrize(
    "name",
    [
        "append_paged_kv_cache",
        "merge_state_in_place",
        "apply_rope_with_cos_sin_cache_inplace",
        "rmsnorm",
        "fused_add_rmsnorm",
        "silu_and_mul",
        "gelu_tanh_and_mul",
    ],
)
def test_functions_have_the_signatures_of_the_library(name: str) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
    ours = [*inspect.signature(getattr(FakeFlashInfer, name)).parameters.values()][1:]
    theirs = [*inspect.signature(getattr(flashinfer, name)).parameters.values()]
    assert [(p.name, p.kind, p.default) for p in ours] == [
        (p.name, p.kind, p.default) for p in theirs
    ]


@pytest.mark.parametrize("fake", [DecodeWrapper, PrefillWrapper])
@pytest.mark.parametrize("method", ["__init__", "plan", "run"])
def test_wrappers_have_the_signatures_of_the_library(fake: Any, method: str) -> None:
    flashinfer = pytest.importorskip("flashinfer", reason="FlashInfer is not installed")
    kind = "Decode" if fake is DecodeWrapper else "Prefill"
    real = getattr(flashinfer, f"Batch{kind}WithPagedKVCacheWrapper")
    # Behind some methods stands another one with the keywords.
    theirs = getattr(real, f"_{method}_impl", getattr(real, method))
    ours, other = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (getattr(fake, method), theirs)
    )
    assert ours == other
