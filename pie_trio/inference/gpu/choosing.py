"""Whether an engine runs on a GPU, and what it takes to open it there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pie_trio.errors import ConfigError
from pie_trio.inference.gpu.graphs import DecodeGraphs
from pie_trio.inference.gpu.kernels import FlashInferKernels
from pie_trio.inference.gpu.library import find_flashinfer, why_no_gpu, why_not
from pie_trio.inference.gpu.runtime import CudaRuntime
from pie_trio.inference.gpu.step import GpuStep

if TYPE_CHECKING:
    import torch

    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.models.config import DecoderConfig
    from pie_trio.inference.models.decoder import Decoder

__all__ = ["DeviceName", "choose_gpu", "open_gpu_step"]

DeviceName = Literal["auto", "cpu", "cuda"]


def choose_gpu(
    device: DeviceName,
    config: DecoderConfig,
    dtype: torch.dtype,
    *,
    is_int8: bool = False,
) -> FlashInferKernels | None:
    """Return the kernels of the GPU, or None to compute on the CPU.

    Args:
        device: "auto" takes a GPU where there is one with FlashInfer, for models that its
            kernels can compute.
        config: Of the model.
        dtype: To compute in.
        is_int8: Whether 8 bits are wanted.

    Raises:
        ConfigError: It is "cuda", and something is missing.
    """
    if device == "cpu":
        return None
    # In the order of what takes longest to find out.
    reason = why_no_gpu() or why_not(config, dtype, is_int8=is_int8)
    library = reason or find_flashinfer()
    if not isinstance(library, str):
        return FlashInferKernels(library, CudaRuntime())
    if device == "cuda":
        raise ConfigError(
            f"the GPU cannot be used: {library}; or start with --device cpu"
        )
    return None


def open_gpu_step(model: Decoder, kv_cache: PagedCache) -> GpuStep | None:
    """Return what computes steps on the GPU; None where the model is on the CPU.

    Captures a graph for each size of a batch, which takes seconds. Ranks get none: nobody has
    seen yet what NCCL does in one.
    """
    kernels = model.kernels
    if not isinstance(kernels, FlashInferKernels):
        return None
    buckets = kernels.buckets if model.group is None else ()
    graphs = DecodeGraphs.capture(model, kernels, kv_cache, buckets=buckets)
    return GpuStep(kernels, graphs)
