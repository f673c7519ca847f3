"""Configuration: frozen dataclasses, the one home of every default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = [
    "ControlConfig",
    "InstanceLimits",
    "ModelConfig",
    "WasmConfig",
    "default_cache_directory",
]


def default_cache_directory() -> Path:
    """Return ``$PIE_CACHE_DIR``, else ``pie`` in the user's cache directory."""
    if named := os.environ.get("PIE_CACHE_DIR"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pie"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model that the server loads.

    Attributes:
        directory: A Hugging Face directory.
        name: How programs call it.
        num_pages: KV pages; None takes what fits ``kv_bytes``.
        kv_bytes: Memory for the KV cache where ``num_pages`` is None.
        page_size: Tokens a page.
        dtype: ``float32``, ``bfloat16``, or ``auto`` for the directory's own.
        num_threads: Of a step on the CPU; None chooses by the size of the model.
    """

    directory: Path
    name: str
    num_pages: int | None = None
    kv_bytes: int = 256 << 20
    page_size: int = 16
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    num_threads: int | None = None


@dataclass(frozen=True, slots=True)
class InstanceLimits:
    """What one instance may use. Each has its own error.

    Attributes:
        memory_bytes: The guest's linear memory.
        wall_seconds: From launch to end; None for no limit.
        max_in_flight: Commands enqueued and not yet taken.
        max_queues: Open command queues.
        max_pages: KV pages of each model, shared ones counted each time.
        max_unread: Messages that the client has not taken yet.
        max_unread_bytes: And their size; no message may be larger.
        log_bytes: What the log keeps; older lines go first.
    """

    memory_bytes: int = 256 << 20
    wall_seconds: float | None = None
    max_in_flight: int = 1024
    max_queues: int = 1024
    max_pages: int = 65536
    max_unread: int = 4096
    max_unread_bytes: int = 16 << 20
    log_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """How commands become batches.

    Attributes:
        max_batch: Most forwards in a batch.
        max_batch_tokens: Most new tokens in a batch; also the most that one forward may have.
        max_distribution: Most tokens in a returned distribution.
        rendezvous_fraction: Wait for inferlets that are about to submit for at most this
            fraction of a step.
        rendezvous_floor_seconds: And for at least this long, where steps are very short.
        max_instances: Instances at once; with ``max_in_flight`` the capacity of the channel.
    """

    max_batch: int = 256
    max_batch_tokens: int = 2048
    max_distribution: int = 256
    rendezvous_fraction: float = 0.5
    rendezvous_floor_seconds: float = 0.002
    max_instances: int = 1024


@dataclass(frozen=True, slots=True)
class WasmConfig:
    """The sandbox.

    Attributes:
        tick_seconds: How often the epoch advances.
        slice_ticks: Ticks that a guest may compute before it is preempted.
        background_share: Part of a core that all preempted guests together may use while
            others want to run.
        cache_directory: Where compiled components are kept.
    """

    tick_seconds: float = 0.005
    slice_ticks: int = 2
    background_share: float = 0.05
    cache_directory: Path = field(default_factory=default_cache_directory)
