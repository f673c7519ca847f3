from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pie_trio.errors import ConfigError
from pie_trio.inference.engine import open_engine
from pie_trio.inference.gpu import choosing
from pie_trio.inference.gpu.library import needs_tensor_cores, why_no_gpu, why_not
from pie_trio.inference.model_directory import read_model_directory
from tests.inference.gpu.fake_flashinfer import FakeFlashInfer
from tests.inference.gpu.fake_runtime import FakeRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.models.config import DecoderConfig

BF16 = torch.bfloat16


@pytest.fixture
def config(tiny_llama: Path) -> DecoderConfig:
    """Of a model that the kernels can compute."""
    found = read_model_directory(tiny_llama).config
    return replace(found, head_dim=64)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_cuda_is_refused_and_auto_takes_the_cpu(
    tiny_llama: Path, config: DecoderConfig
) -> None:
    with pytest.raises(ConfigError, match=r"sees no GPU; or start with --device cpu"):
        open_engine(tiny_llama, name="m", num_pages=4, device="cuda")
    assert choosing.choose_gpu("auto", config, BF16) is None
    engine = open_engine(tiny_llama, name="m", num_pages=4, device="auto").engine
    assert engine.info.num_pages == 4
    assert "no GPU" in why_no_gpu()


@pytest.mark.parametrize(
    ("changes", "dtype", "is_int8", "message"),
    [
        ({}, torch.float32, False, "add --dtype bfloat16"),
        ({"head_dim": 80}, BF16, False, "heads have 80 dimensions"),
        ({"hidden_size": 20}, BF16, False, r"multiples of 8, unlike \[20, 40\]"),
        ({}, BF16, True, "8 bits are for the CPU"),
    ],
)
def test_what_there_are_no_kernels_for_is_said(
    monkeypatch: pytest.MonkeyPatch,
    config: DecoderConfig,
    changes: dict[str, Any],
    dtype: torch.dtype,
    is_int8: bool,
    message: str,
) -> None:
    monkeypatch.setattr(choosing, "why_no_gpu", str)
    config = replace(config, **changes)
    with pytest.raises(ConfigError, match=message):
        choosing.choose_gpu("cuda", config, dtype, is_int8=is_int8)
    assert choosing.choose_gpu("auto", config, dtype, is_int8=is_int8) is None


def test_with_a_gpu_and_the_library_both_are_used(
    monkeypatch: pytest.MonkeyPatch, config: DecoderConfig
) -> None:
    monkeypatch.setattr(choosing, "why_no_gpu", str)
    monkeypatch.setattr(choosing, "find_flashinfer", FakeFlashInfer)
    monkeypatch.setattr(choosing, "CudaRuntime", FakeRuntime)
    devices: list[choosing.DeviceName] = ["auto", "cuda"]
    for device in devices:
        kernels = choosing.choose_gpu(device, config, BF16)
        assert kernels is not None
        assert kernels.name.startswith("FlashInfer 0.6.18")
    assert choosing.choose_gpu("cpu", config, BF16) is None
    assert not why_not(config, BF16)


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "expected"),
    [(32, 8, True), (24, 8, False), (8, 8, False), (14, 2, True), (16, 8, False)],
)
def test_tensor_cores_are_for_wide_or_odd_groups(
    num_heads: int, num_kv_heads: int, expected: bool
) -> None:
    assert needs_tensor_cores(num_heads, num_kv_heads) == expected
