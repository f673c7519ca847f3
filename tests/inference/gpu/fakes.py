"""The GPU's kernels and engine over the fakes of library and device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch

from pie_trio.inference.engine import TorchEngine, open_engine
from pie_trio.inference.gpu.kernels import FlashInferKernels
from pie_trio.inference.gpu.step import GpuStep
from tests.inference.gpu.fake_flashinfer import FakeFlashInfer
from tests.inference.gpu.fake_runtime import FakeRuntime

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pie_trio.inference.gpu.library import FlashInfer
    from pie_trio.inference.gpu.lora import LoraKernels
    from pie_trio.inference.paging.cascade import CascadeRule

EXACT = (torch.float32, torch.bfloat16)


def fake_kernels(
    library: FakeFlashInfer | None = None,
    *,
    runtime: FakeRuntime | None = None,
    buckets: Sequence[int] = (1, 2, 4, 8),
    cascade: CascadeRule | None = None,
    lora: LoraKernels | None = None,
) -> FlashInferKernels:
    """Return kernels over fakes; by default float32 and any head are allowed."""
    library = library or FakeFlashInfer(dtypes=EXACT, head_dims=None)
    # Its wrappers spell out the options that ours take together.
    functions = cast("FlashInfer", library)
    return FlashInferKernels(
        functions,
        runtime or FakeRuntime(),
        buckets=buckets,
        cascade=cascade,
        lora=lora,
    )


def open_fake(directory: Path, **options: Any) -> TorchEngine:
    """Open a model as the GPU would; options are those of :func:`open_engine`."""
    options = {"kernels": fake_kernels(), "num_threads": 1, "name": "gpu", **options}
    return open_engine(directory, **options).engine


def step_of(engine: TorchEngine) -> GpuStep:
    """Return what computes an engine's steps."""
    step = engine._compute
    assert isinstance(step, GpuStep)
    return step


def library_of(engine: TorchEngine) -> FakeFlashInfer:
    """Return the library of an engine."""
    library: object = step_of(engine)._kernels.library
    assert isinstance(library, FakeFlashInfer)
    return library
