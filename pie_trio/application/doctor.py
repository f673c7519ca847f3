"""``pie doctor``: what is there, what is missing, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Literal

from rich.console import Console
from rich.table import Table

from pie_trio.application.engines.memory import (
    RUN_KV_BYTES,
    find_memory,
    format_bytes,
    measure_model,
    size_models,
)
from pie_trio.application.run.setup import default_model, parse_model
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from pie_trio.config import ModelConfig

__all__ = ["Finding", "examine", "print_report"]

SUPPORTED_PYTHON = ((3, 11), (3, 14))
WASMTIME = "50.0.1"

Status = Literal["ok", "absent", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What.
        status: ``absent`` is fine unless the user wants it; ``wrong`` keeps Pie from running.
        detail: What was found.
        advice: What to do, or "".
    """

    subject: str
    status: Status
    detail: str
    advice: str = ""


def examine(models: Sequence[str], cache_directory: Path) -> Iterator[Finding]:
    """Look at everything that a run needs.

    Args:
        models: Directories, or ``NAME=DIR``, as for ``--model``.
        cache_directory: Where compiled components are kept.
    """
    yield _examine_python()
    yield _examine_torch()
    yield _examine_kernels()
    yield _examine_package(
        "wasmtime", WASMTIME, "Pie uses its private C interface, which changes"
    )
    yield _examine_package("componentize-py", None, "it builds the language component")
    gpu = _examine_gpu()
    yield gpu
    yield _examine_flashinfer(has_gpu=gpu.status == "ok")
    yield _examine_memory()
    yield _examine_cache(cache_directory)
    if models:
        for text in models:
            yield _examine_model(partial(parse_model, text))
    else:
        yield _examine_model(default_model)


def print_report(findings: Iterator[Finding]) -> int:
    """Print findings as a table on stdout; return 1 if something is wrong, else 0."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "what", "found", "to do"):
        table.add_column(column, overflow="fold")
    signs = {"ok": "[green]ok[/]", "absent": "[yellow]--[/]", "wrong": "[red]!![/]"}
    is_wrong = False
    for finding in findings:
        is_wrong |= finding.status == "wrong"
        table.add_row(
            signs[finding.status], finding.subject, finding.detail, finding.advice
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return 1 if is_wrong else 0


def _examine_python() -> Finding:
    low, end = SUPPORTED_PYTHON
    detail = f"{platform.python_version()} at {sys.executable}"
    if low <= sys.version_info[:2] < end:
        return Finding("Python", "ok", detail)
    return Finding("Python", "wrong", detail, "use Python 3.11, 3.12 or 3.13")


def _examine_torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding(
            "torch",
            "wrong",
            str(error),
            "pip install torch --index-url https://download.pytorch.org/whl/cpu",
        )
    capability = torch.backends.cpu.get_cpu_capability()
    threads = torch.get_num_threads()
    return Finding(
        "torch", "ok", f"{torch.__version__}, {threads} threads, {capability}"
    )


def _examine_kernels() -> Finding:
    def look() -> Finding:
        from pie_trio.inference.kernels.library import find_library

        found = find_library()
        if isinstance(found, str):
            advice = "then a step of a large batch takes half the time"
            return Finding("native kernels", "absent", found, advice)
        return Finding("native kernels", "ok", f"built for {found.name}")

    return _explain("native kernels", look)


def _examine_memory() -> Finding:
    available = find_memory()
    detail = f"{format_bytes(available.num_bytes)} available ({available.limit})"
    return Finding("memory", "ok", detail)


def _examine_package(name: str, wanted: str | None, reason: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(name, "wrong", "not installed", f"pip install {name}: {reason}")
    if wanted is not None and found != wanted:
        advice = f"pip install {name}=={wanted}: {reason}"
        return Finding(name, "wrong", found, advice)
    return Finding(name, "ok", found)


def _examine_gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding(
            "GPU", "absent", "no nvidia-smi", "none needed: torch runs on the CPU"
        )
    query = [
        tool,
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader",
    ]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(
            "GPU", "absent", f"nvidia-smi failed: {error}", "look at the driver"
        )
    return Finding("GPU", "ok", done.stdout.strip().replace("\n", "; "))


def _examine_flashinfer(*, has_gpu: bool) -> Finding:
    try:
        found = version("flashinfer-python")
    except PackageNotFoundError:
        advice = "pip install 'pie-trio[cuda]'" if has_gpu else "only a GPU needs it"
        return Finding("FlashInfer", "absent", "not installed", advice)
    if not has_gpu:
        return Finding("FlashInfer", "absent", f"{found}, but no GPU", "nothing")

    def look() -> Finding:
        from pie_trio.inference.gpu.library import why_no_gpu

        if reason := why_no_gpu():
            advice = "install a torch that was built for CUDA"
            return Finding("FlashInfer", "absent", f"{found}, but {reason}", advice)
        advice = "start with --device cuda --dtype bfloat16"
        return Finding("FlashInfer", "ok", found, advice)

    return _explain("FlashInfer", look)


def _examine_cache(directory: Path) -> Finding:
    from pie_trio.application.lifecycle.language import find_language_component
    from pie_trio.application.wasm.compile_cache import CompileCache
    from pie_trio.application.wasm.runtime import make_engine

    def look() -> Finding:
        cache = CompileCache(directory)
        found = find_language_component(directory)
        if found is None:
            advice = "nothing: the first run builds it, in about 30 s"
            return Finding(
                "language component", "absent", f"not in {directory}", advice
            )
        if not cache.has(make_engine(), found):
            advice = "nothing: the first run compiles it, in about 10 s"
            return Finding(
                "language component", "absent", f"{found}, not compiled", advice
            )
        return Finding("language component", "ok", f"built and compiled in {directory}")

    return _explain("language component", look)


def _examine_model(choose: Callable[[], ModelConfig]) -> Finding:
    def look() -> Finding:
        from pie_trio.inference.model_directory import read_model_directory
        from pie_trio.inference.tokenizer import load_tokenizer
        from pie_trio.inference.weights import open_checkpoint

        config = choose()
        found = read_model_directory(config.directory)
        load_tokenizer(
            found.path / "tokenizer.json", vocab_size=found.config.vocab_size
        )
        with open_checkpoint(found.path):
            pass  # the headers are read, and the files are as long as they say
        size = sum(
            path.stat().st_size for path in config.directory.glob("*.safetensors")
        )
        takes, pages = (
            measure_model(config),
            [
                size_models([config], default_kv_bytes=most)[0].num_pages or 0
                for most in (None, RUN_KV_BYTES)
            ],
        )
        return Finding(
            f"model {config.name}",
            "ok",
            f"{found.config.architecture}, {size / 1e6:.1f} MB in {os.fspath(config.directory)}; "
            f"{format_bytes(takes.weight_bytes)} of weights in {config.dtype}, KV pages of "
            f"{format_bytes(takes.page_bytes)}: {pages[0]:,} in pie serve, {pages[1]:,} in pie run",
        )

    return _explain("model", look)


def _explain(subject: str, look: Callable[[], Finding]) -> Finding:
    """Turn an error, whose message says what to do, into a finding."""
    try:
        return look()
    except PieError as error:
        return Finding(subject, "wrong", str(error))
    except ImportError as error:  # safetensors imports torch when a file is opened
        return Finding(subject, "wrong", str(error), "install torch first")
