"""Finds and loads what was built of kernels.cpp; mirrors its interface for ctypes.

Building is up to the installation (``ext-modules`` in pyproject.toml) and may have failed: then
there is no library, and torch does the work.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Batch",
    "Library",
    "Shape",
    "find_library",
    "load_build",
    "usable_builds",
]

_ABI = 2  # PIE_KERNELS_ABI of kernels.cpp

# The best first; who can run one can run all that follow. The names of the files begin with
# an underscore.
_BUILDS = ("avx512_bf16", "avx512", "avx2", "plain")
_BY_CAPABILITY = {"AVX512": "avx512", "AVX2": "avx2"}  # torch's names

_HOW_TO_BUILD = "install a C++ compiler (g++ or clang++), then run pip install again"


class Shape(ctypes.Structure):
    """PieShape of kernels.cpp."""

    _fields_ = (
        ("num_heads", c_int64),
        ("num_kv_heads", c_int64),
        ("head_dim", c_int64),
        ("page_size", c_int64),
        ("scale", c_float),
        ("softcap", c_float),
    )


class Batch(ctypes.Structure):
    """PieBatch of kernels.cpp."""

    _fields_ = (
        ("num_requests", c_int64),
        ("num_tokens", c_int64),
        ("page_ids", c_void_p),
        ("page_indptr", c_void_p),
        ("kv_lens", c_void_p),
        ("qo_indptr", c_void_p),
        ("write_slots", c_void_p),
        ("masks", c_void_p),
    )


_SIGNATURES = {
    "pie_rms_norm": (c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float),
    "pie_norm_and_rotate": (
        *(c_int, c_void_p, c_int64, c_int64, c_int64, c_int64),
        *(c_void_p, c_float, c_void_p, c_void_p, c_int64),
    ),
    "pie_gated": (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int),
    "pie_quantize": (c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int64),
    "pie_scale_rows": (c_int, c_void_p, c_void_p, c_int64, c_int64),
    "pie_pack_linear": (c_void_p, c_void_p, c_int64, c_int64),
    "pie_linear": (
        *(c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64),
        c_void_p,
    ),
    "pie_attention": (
        *(c_int, POINTER(Shape), POINTER(Batch), c_void_p, c_int64),
        *(c_void_p, c_int64, c_void_p, c_void_p, c_int64, c_void_p),
    ),
}


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library.

    Attributes:
        name: The instruction set that it was built for, for people.
        functions: They give other threads of Python their turn.
        short_functions: The same, but no other thread runs meanwhile: to get the turn back
            from a busy one takes up to 5 ms, far longer than a short operation.
        has_linear: Whether it has linear layers of bfloat16.
    """

    name: str
    functions: ctypes.CDLL
    short_functions: ctypes.PyDLL
    has_linear: bool


def usable_builds() -> tuple[str, ...]:
    """Return the builds that this processor can run, the best first; built or not.

    ``ATEN_CPU_CAPABILITY``, an environment variable of torch, makes it a lesser one.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    best = _BY_CAPABILITY.get(capability, "plain")
    if best == "avx512" and _has_bf16():
        best = "avx512_bf16"
    return _BUILDS[_BUILDS.index(best) :]


def _has_bf16() -> bool:
    """Say whether the processor multiplies bfloat16; torch keeps the answer to itself."""
    ask: Callable[[], bool] | None
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return ask is not None and ask()


@cache
def find_library() -> Library | str:
    """Return the best library for this processor, or why there is none."""
    reasons: list[str] = []
    for build in usable_builds():
        found = load_build(build)
        if isinstance(found, Library):
            return found
        reasons.append(found)
    return reasons[0]


def load_build(build: str) -> Library | str:
    """Load one build, or return why it cannot be."""
    names = (f"_{build}{suffix}" for suffix in EXTENSION_SUFFIXES)
    paths = (Path(__file__).with_name(name) for name in names)
    path = next((path for path in paths if path.is_file()), None)
    return _load(path, build) if path else f"they were not built: {_HOW_TO_BUILD}"


def _load(path: Path, build: str) -> Library | str:
    try:
        functions, short = ctypes.CDLL(str(path)), ctypes.PyDLL(str(path))
        abi: int = functions.pie_abi()
        if abi != _ABI:
            return f"{path.name} is of another version of Pie: run pip install again"
        for library in (functions, short):
            for name, arguments in _SIGNATURES.items():
                function = getattr(library, name)
                function.argtypes, function.restype = arguments, None
        has_linear = bool(functions.pie_has_linear())
    except (OSError, AttributeError) as error:
        return f"{path.name} cannot be loaded ({error}): run pip install again"
    return Library(build, functions, short, has_linear)
