"""How much memory there is, and how many KV pages of a model fit beside its weights."""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pie_trio.application.engines.gpu import free_gpu_bytes
from pie_trio.errors import ConfigError, ModelDirectoryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.config import ModelConfig

__all__ = [
    "RUN_KV_BYTES",
    "AvailableMemory",
    "ModelSize",
    "find_memory",
    "format_bytes",
    "measure_model",
    "parse_bytes",
    "size_models",
]

RESERVED_SHARE, MIN_RESERVED_BYTES = 0.25, 256 << 20
"""Of what is available, for inferlets, suspended pages and everything else."""

MAX_DEFAULT_PAGES = 1 << 16
"""A million tokens; the small models that this is for would get more than anybody fills."""

RUN_KV_BYTES = 256 << 20
"""Enough for one program; what it does not use is never taken."""

_ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_CGROUPS = Path("/sys/fs/cgroup")
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class AvailableMemory:
    """What this process may still take.

    Attributes:
        num_bytes: Without swapping, and within its limits.
        limit: What sets this: ``the machine's memory``, or a cgroup.
    """

    num_bytes: int
    limit: str


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model takes before it has any KV page, and what a page takes.

    Attributes:
        weight_bytes: As they are computed with, and the places for hidden states; of all
            processes that have it or a part of it.
        page_bytes: Of one KV page in all layers, in each of its replicas.
    """

    weight_bytes: int
    page_bytes: int


def find_memory(
    *, meminfo: Path = Path("/proc/meminfo"), cgroups: Path = _CGROUPS
) -> AvailableMemory:
    """Return what may still be taken: the least of what the machine and its cgroups have.

    Args:
        meminfo: As ``/proc/meminfo``; where there is none, half of the machine's memory.
        cgroups: Where they are mounted.
    """
    try:
        text = meminfo.read_text()
        found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
        assert found is not None, "every Linux since 3.14 tells"
        free = int(found[1]) << 10
    except OSError:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    available = AvailableMemory(free, "the machine's memory")
    for folder in _own_cgroups(cgroups):
        left = _left_in(folder)
        if left is not None and left < available.num_bytes:
            available = AvailableMemory(left, f"the cgroup {folder}")
    return available


def measure_model(config: ModelConfig) -> ModelSize:
    """Return what a model takes. Reads the headers of its files only.

    Raises:
        ModelDirectoryError: A file is missing or damaged.
    """
    from pie_trio.inference.model_directory import read_model_directory

    decoder = read_model_directory(config.directory).config
    name = decoder.stored_dtype if config.dtype == "auto" else config.dtype
    item_bytes = _ITEM_BYTES.get(
        name or "", 4
    )  # an unknown one is refused when it is loaded
    weights = 0
    for path in sorted(config.directory.glob("*.safetensors")):
        for tensor, shape in _read_shapes(path).items():
            is_int8 = (
                config.quantize == "int8" and len(shape) > 1 and "embed" not in tensor
            )
            num_copies = config.tensor_parallel if _is_copied(tensor, shape) else 1
            weights += num_copies * math.prod(shape) * (1 if is_int8 else item_bytes)
    embeds = config.num_embeds * decoder.hidden_size * item_bytes
    weights += config.tensor_parallel * embeds
    numbers = 2 * decoder.num_layers * decoder.num_kv_heads * decoder.head_dim
    page_bytes = config.page_size * numbers * item_bytes
    return ModelSize(config.replicas * weights, config.replicas * page_bytes)


def _is_copied(tensor: str, shape: Sequence[int]) -> bool:
    """Say whether each process has all of a tensor: see ``inference/parallel``."""
    return "embed" in tensor or (len(shape) == 1 and not tensor.endswith(".bias"))


def size_models(
    models: Sequence[ModelConfig],
    *,
    default_kv_bytes: int | None = None,
    available: AvailableMemory | None = None,
) -> list[ModelConfig]:
    """Return the models with numbers of KV pages for which there is memory.

    Those without a number or size of their own get equal parts of what is left beside all
    weights, the others' pages and a reserve, up to :data:`MAX_DEFAULT_PAGES`. Replicas share what
    a model gets.

    Args:
        models: As the operator wants them.
        default_kv_bytes: The most that such a part may be; None for no bound.
        available: What there is; None to look, on the GPU if all models are for it.

    Raises:
        ConfigError: They do not fit; the message says what would.
    """
    available = available or _find_for(models)
    sizes = [measure_model(model) for model in models]
    fixed = [_fixed_pages(*pair) for pair in zip(models, sizes, strict=True)]
    needed = sum(size.weight_bytes for size in sizes) + sum(
        (count or 0) * size.page_bytes for count, size in zip(fixed, sizes, strict=True)
    )
    left = available.num_bytes - needed
    num_open = fixed.count(None)
    if num_open:
        share = int(RESERVED_SHARE * available.num_bytes)
        left = (left - max(share, MIN_RESERVED_BYTES)) // num_open
        if default_kv_bytes is not None:
            left = min(left, default_kv_bytes)
    for size, count in zip(sizes, fixed, strict=True):
        if left < (size.page_bytes if count is None else 0):
            raise ConfigError(_does_not_fit(models, sizes, fixed, available))
    return [
        replace(
            model,
            num_pages=min(left // size.page_bytes, MAX_DEFAULT_PAGES)
            if count is None
            else count,
        )
        for model, size, count in zip(models, sizes, fixed, strict=True)
    ]


def _find_for(models: Sequence[ModelConfig]) -> AvailableMemory:
    """Return the memory that models are loaded into: GPUs' if all of them are for these.

    Raises:
        ConfigError: There are too few GPUs, or models are for different numbers of them.
    """
    if not models or any(model.device != "cuda" for model in models):
        return find_memory()
    counts = {model.tensor_parallel * model.replicas for model in models}
    if len(counts) > 1:
        raise ConfigError(
            "models on GPUs are shared by the same number of them, but --tensor-parallel times "
            f"--replicas is {' and '.join(map(str, sorted(counts)))}: serve them from two servers"
        )
    (count,) = counts
    limit = "the GPU's memory" if count == 1 else f"the memory of {count} GPUs"
    # Each process takes the same, so that the GPU with the least sets the limit.
    return AvailableMemory(count * free_gpu_bytes(count), limit)


def format_bytes(count: int) -> str:
    """Return a size as a person reads it: ``1.5 GiB``."""
    for shift, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 1 << shift:
            return f"{count / (1 << shift):.3g} {unit}"
    return f"{count} bytes"


def parse_bytes(text: str) -> int:
    """Read a size: ``2GiB``, ``512M``, ``1.5g``; all units are powers of 1,024.

    Raises:
        ValueError: It is none.
    """
    found = re.fullmatch(
        r"\s*(\d+(?:\.\d+)?)\s*(?:([kmgt])(?:i?b)?|b)?\s*", text, re.IGNORECASE
    )
    if found is None:
        raise ValueError(text)
    return int(float(found[1]) * (1 << _UNITS[(found[2] or "").lower()]))


def _fixed_pages(model: ModelConfig, size: ModelSize) -> int | None:
    """Return how many pages the operator wants; None if that is left to us.

    Raises:
        ConfigError: Not even one fits the memory that was given.
    """
    if model.num_pages is not None or model.kv_bytes is None:
        return model.num_pages
    count = model.kv_bytes // size.page_bytes
    if count < 1:
        raise ConfigError(
            f"a KV page of {model.name} takes {size.page_bytes:,} bytes ({model.page_size} "
            f"tokens in {model.dtype}{_on_replicas(model)}), but --kv-memory gives {model.kv_bytes:,}: give more"
        )
    return count


def _on_replicas(model: ModelConfig) -> str:
    return f" on {model.replicas} replicas" if model.replicas > 1 else ""


def _does_not_fit(
    models: Sequence[ModelConfig],
    sizes: Sequence[ModelSize],
    fixed: Sequence[int | None],
    available: AvailableMemory,
) -> str:
    parts: list[str] = []
    for model, size, count in zip(models, sizes, fixed, strict=True):
        text = f"{model.name} has {format_bytes(size.weight_bytes)} of weights"
        text += _on_replicas(model)
        if model.quantize is None:
            text += f" in {model.dtype}"
        if count is None:
            text += f", and a KV page takes {format_bytes(size.page_bytes)}"
        else:
            pages = format_bytes(count * size.page_bytes)
            text += f", and {count:,} KV pages take {pages}"
        parts.append(text)
    weights = sum(size.weight_bytes for size in sizes)
    left = (available.num_bytes - weights) // len(models)
    counts = [max(0, left) // size.page_bytes for size in sizes]
    if min(counts) < 1:
        advice = "serve a smaller model, or try --dtype bfloat16 or --quantize int8"
    else:
        whose = " each" if len(models) > 1 else ""
        advice = (
            f"at most {format_bytes(left)} for KV pages{whose} would fit "
            f"({min(counts):,} pages): start with less --kv-memory or --kv-pages"
        )
    return (
        f"{'; '.join(parts)}; but only {format_bytes(available.num_bytes)} of memory are "
        f"available ({available.limit}): {advice}"
    )


def _own_cgroups(root: Path) -> list[Path]:
    """Return the folders of the cgroups that this process is in, v2 and v1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    folders: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = root
        elif "memory" in controllers.split(","):
            top = root / "memory"
        else:
            continue
        inner = top / path.lstrip("/")
        # Inside of a container the path may be that of the host, and is not there.
        folders += [f for f in (inner, *inner.parents) if f.is_relative_to(top)]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _left_in(folder: Path) -> int | None:
    """Return what a cgroup may still take; None if it has no limit."""
    names = (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    )
    for limit_name, used_name in names:
        try:
            limit = (folder / limit_name).read_text().strip()
            used = int((folder / used_name).read_text())
            text = (folder / "memory.stat").read_text()
        except (OSError, ValueError):
            continue
        if limit == "max":
            return None
        # The system takes files back that nobody has looked at for a while.
        cached = re.search(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE)
        return max(0, int(limit) - used + (int(cached[1]) if cached else 0))
    return None


def _read_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shapes of the tensors in a safetensors file.

    Raises:
        ModelDirectoryError: It is none.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
        return {
            name: [int(length) for length in entry["shape"]]
            for name, entry in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelDirectoryError(
            f"{path}: expected a complete safetensors file, but it cannot be read ({error}): "
            "download it again"
        ) from error
