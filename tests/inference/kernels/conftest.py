from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pie_trio.inference.kernels.library import load_build, usable_builds
from pie_trio.inference.kernels.native import NativeKernels
from pie_trio.inference.kernels.reference import TorchKernels
from tests.inference.gpu.fakes import fake_kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pie_trio.inference.kernels.protocol import Kernels

BUILDS = ("avx512_bf16", "avx512", "avx2", "plain")


def native_kernels(build: str) -> NativeKernels:
    """The kernels of one build; skips where it was not built or cannot run."""
    if build not in usable_builds():
        pytest.skip(f"this processor cannot run {build}")
    library = load_build(build)
    if isinstance(library, str):
        pytest.skip(library)
    return NativeKernels(library)


@pytest.fixture(params=["torch", *BUILDS, "flashinfer"])
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """What the contract suite runs over."""
    name = str(request.param)
    if name == "flashinfer":
        return fake_kernels()
    return TorchKernels() if name == "torch" else native_kernels(name)


@pytest.fixture(params=BUILDS)
def native(request: pytest.FixtureRequest) -> NativeKernels:
    return native_kernels(str(request.param))


@pytest.fixture(params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found = getattr(torch, str(request.param))
    assert isinstance(found, torch.dtype)
    return found


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With more threads than free cores these tests take far longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
