"""Which implementation an engine runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pie_trio.errors import ConfigError
from pie_trio.inference.kernels.library import find_library
from pie_trio.inference.kernels.native import MAX_HEAD_DIM, NativeKernels
from pie_trio.inference.kernels.reference import TorchKernels

if TYPE_CHECKING:
    from pie_trio.inference.kernels.protocol import Kernels

__all__ = ["KernelsName", "choose_kernels"]

KernelsName = Literal["auto", "torch", "native"]


def choose_kernels(name: KernelsName, *, head_dim: int = 0) -> Kernels:
    """Return what to compute with.

    Args:
        name: "auto" takes the built library where there is one, else torch.
        head_dim: Of the model.

    Raises:
        ConfigError: It is "native", but there is no library, or not for this model.
    """
    if name == "torch":
        return TorchKernels()
    library = find_library()
    if head_dim > MAX_HEAD_DIM:
        library = f"heads have {head_dim} dimensions, of at most {MAX_HEAD_DIM}"
    if not isinstance(library, str):
        return NativeKernels(library)
    if name == "native":
        raise ConfigError(
            f"the native kernels cannot be used, for {library}; or start with "
            "--kernels torch"
        )
    return TorchKernels()
