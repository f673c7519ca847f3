"""Configuration: frozen dataclasses, the one home of every default."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = [
    "SERVER_LIMITS",
    "ControlConfig",
    "EngineProcessConfig",
    "InstanceLimits",
    "ModelConfig",
    "OfferedGrants",
    "SharedLimits",
    "WasmConfig",
    "default_cache_directory",
    "default_store_path",
]


def default_cache_directory() -> Path:
    """Return ``$PIE_CACHE_DIR``, else ``pie`` in the user's cache directory."""
    if named := os.environ.get("PIE_CACHE_DIR"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pie"


def default_store_path() -> Path:
    """Return ``store.db`` in ``$PIE_DATA_DIR``, else in ``pie`` in the user's data directory."""
    if named := os.environ.get("PIE_DATA_DIR"):
        return Path(named) / "store.db"
    base = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(base).expanduser() / "pie" / "store.db"


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model that the server loads.

    Attributes:
        directory: A Hugging Face directory.
        name: How programs call it.
        num_pages: KV pages of each engine; None takes what fits ``kv_bytes``.
        kv_bytes: Memory for the KV cache of all its engines where ``num_pages`` is None; None
            takes what there is, within bounds: see
            :func:`~.application.engines.memory.size_models`.
        num_embeds: Places for hidden states.
        page_size: Tokens a page.
        dtype: ``float32``, ``bfloat16``, or ``auto`` for the directory's own.
        num_threads: Of a step on the CPU; None chooses by the size of the model.
        kernels: Of the CPU: those in C++, torch's, or the former if they were built.
        quantize: Whether linear layers compute in 8 bits on the CPU.
        device: Where it runs; ``auto`` is a GPU where there is one with FlashInfer.
        tensor_parallel: Processes that have a part of each layer; on GPUs each has its own.
        replicas: Engines that each have all of the model, and pages of their own.
        adapters: Names of LoRA adapters, with their directories as PEFT saves them.
    """

    directory: Path
    name: str
    num_pages: int | None = None
    kv_bytes: int | None = None
    num_embeds: int = 4096
    page_size: int = 16
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    num_threads: int | None = None
    kernels: Literal["auto", "torch", "native"] = "auto"
    quantize: Literal["int8"] | None = None
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    tensor_parallel: int = 1
    replicas: int = 1
    adapters: tuple[tuple[str, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class EngineProcessConfig:
    """How long an engine in a process of its own may take, and how often it starts again.

    Attributes:
        start_seconds: Until its model is loaded.
        report_seconds: A step that takes longer is reported in the log.
        step_seconds: A step that takes longer ends the process, as does a grammar.
        call_seconds: The same for a short call beside steps, in which the server waits.
        max_restarts: So many within ``window_seconds``; then it stays away.
        window_seconds: What counts.
        first_delay_seconds: Before a restart; twice as long before each further one that
            counts.
        max_delay_seconds: But no longer than this.
    """

    start_seconds: float = 600.0
    report_seconds: float = 15.0
    step_seconds: float = 300.0
    call_seconds: float = 10.0
    max_restarts: int = 5
    window_seconds: float = 600.0
    first_delay_seconds: float = 0.2
    max_delay_seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class InstanceLimits:
    """What one instance may use. Each has its own error; see docs/reference/limits.md.

    An instance and the children that it launches, and theirs, are charged together: all of them
    have no more than one instance may have, but for the guests' own memory.

    Attributes:
        memory_bytes: The guest's linear memory.
        wall_seconds: From launch to end; None for no limit.
        grace_seconds: To clean up once it was cancelled; then it is ended where it stands.
        max_in_flight: Commands enqueued and not yet taken.
        max_mask_bytes: Attention masks of commands in flight, a byte an entry.
        max_command_bytes: What commands and decode streams keep beside their masks, and what
            the results take that were not taken yet.
        max_queues: Open command queues.
        max_pages: KV pages of each model, shared ones counted each time.
        max_embeds: Embeds of each model.
        max_processors: Processors (grammars, penalties) at once, with the copies of decode
            streams and those that are given back while they are made.
        max_processor_bytes: What they were made of: grammars, lists of tokens.
        max_unread: Messages that the client has not taken yet, and those from it that the
            instance has not received yet. The same for each child and each subscription.
        max_unread_bytes: And their size; no message may be larger.
        max_request_bytes: Requests to the store and to other servers that are on their way,
            and answers that were not taken yet.
        max_children: Children at once.
        max_depth: Of children of children.
        max_descendants: Children at once, with theirs.
        max_launches: Children in all, with theirs.
        max_argument_bytes: Arguments of a child, as JSON.
        max_tokens: Computed in all, prefilled and decoded; None for no limit.
        max_http_requests: To other servers, in all; None for no limit.
        max_http_bytes: Of these and of their answers, in all; None for no limit.
        log_bytes: What the log keeps; older lines go first.
        log_bytes_per_second: What it takes in the long run; more is left out, and a line says
            so. As much as ``log_bytes`` may come at once. None for no limit.
        max_log_bytes: What it takes in all; None for no limit.
    """

    memory_bytes: int = 256 << 20
    wall_seconds: float | None = None
    grace_seconds: float = 3.0
    max_in_flight: int = 1024
    max_mask_bytes: int = 1 << 27
    max_command_bytes: int = 1 << 28
    max_queues: int = 1024
    max_pages: int = 65536
    max_embeds: int = 65536
    max_processors: int = 256
    max_processor_bytes: int = 64 << 20
    max_unread: int = 4096
    max_unread_bytes: int = 16 << 20
    max_request_bytes: int = 64 << 20
    max_children: int = 64
    max_depth: int = 8
    max_descendants: int = 256
    max_launches: int = 1 << 16
    max_argument_bytes: int = 1 << 20
    max_tokens: int | None = None
    max_http_requests: int | None = 1 << 17
    max_http_bytes: int | None = 4 << 30
    log_bytes: int = 1 << 20
    log_bytes_per_second: int | None = 1 << 18
    max_log_bytes: int | None = 1 << 30


@dataclass(frozen=True, slots=True)
class OfferedGrants:
    """What a server lets programs do that ask for it; hosts are named apart.

    A program that names no grants in its manifest is given all that are offered.

    Attributes:
        logits: See raw logits and hidden states.
        publish: Export pages for everybody on the server.
        topics: Use topics of other owners.
        spawn: Launch children.
    """

    logits: bool = True
    publish: bool = True
    topics: bool = True
    spawn: bool = True

    @classmethod
    def by_default(cls, *, has_keys: bool) -> OfferedGrants:
        """Return what a server offers whose operator says nothing.

        Args:
            has_keys: There are several users: what concerns others has to be allowed, and what
                tells of the model more than its text.
        """
        return cls(logits=not has_keys, publish=not has_keys, topics=not has_keys)


@dataclass(frozen=True, slots=True)
class SharedLimits:
    """What several inferlets may use together: all of a user, or all of the server.

    Attributes:
        pages: KV pages of all models, shared ones counted each time.
        embeds: Embeds of all models.
        queues: Open command queues.
        commands_in_flight: Commands that have not finished.
        mask_bytes: Their attention masks.
        command_bytes: What else they and their results keep.
        processors: Processors (grammars, penalties) of all models.
        processor_bytes: What they were made of: grammars, lists of tokens.
        unread_bytes: Messages that wait for clients, inferlets and subscribers.
        request_bytes: Requests to the store and to other servers, and untaken answers.
        http_requests: Requests to other servers at once.
        subscriptions: To topics.
        instances: Instances that have not ended, children of others too.
    """

    pages: int = 1 << 20
    embeds: int = 1 << 20
    queues: int = 1 << 16
    commands_in_flight: int = 1 << 16
    mask_bytes: int = 1 << 30
    command_bytes: int = 1 << 31
    processors: int = 1 << 12
    processor_bytes: int = 256 << 20
    unread_bytes: int = 256 << 20
    request_bytes: int = 512 << 20
    http_requests: int = 256
    subscriptions: int = 1 << 12
    instances: int = 1 << 10


SERVER_LIMITS = SharedLimits(
    pages=1 << 22,
    embeds=1 << 22,
    queues=1 << 18,
    commands_in_flight=1 << 18,
    mask_bytes=1 << 32,
    command_bytes=1 << 33,
    processors=1 << 14,
    processor_bytes=1 << 30,
    unread_bytes=1 << 30,
    request_bytes=2 << 30,
    http_requests=1 << 10,
    subscriptions=1 << 14,
    instances=1 << 10,
)
"""By default, the server has room for several users at their limits."""


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """How commands become batches, and what happens when pages are short.

    Attributes:
        max_batch: Most forwards in a batch.
        max_batch_tokens: Most new tokens in a batch.
        chunk_tokens: Most of them from long prefills while at least as many other inferlets would
            wait for their next token; four times as many otherwise.
        max_forward_tokens: Most new tokens of one forward; it runs in chunks.
        max_distribution: Most tokens in a returned distribution.
        policy: When a batch is dispatched: see :mod:`pie_trio.control.policies`.
        contention: What happens when pages are short: ``ladder`` or ``fcfs``.
        swap_bytes: Host memory for the pages of suspended inferlets.
        inline_seconds: Steps of a lone inferlet that take less than this run in the event
            loop's own thread; 0 for none.
        has_device_thread: Whether all other steps run in a thread of the device. Without one,
            the event loop waits for each: for engines that take no time, in tests.
        goes_ahead: Whether decode streams are made ready for their next token while the device
            samples it; None where steps leave this process a core, and not where both
            would wait for the same ones.
        max_instances: Instances at once; with ``max_in_flight`` the capacity of the channel.
    """

    max_batch: int = 256
    max_batch_tokens: int = 2048
    chunk_tokens: int = 256
    max_forward_tokens: int = 16384
    max_distribution: int = 256
    policy: str = "rendezvous"
    contention: str = "ladder"
    swap_bytes: int = 1 << 30
    inline_seconds: float = 0.001
    has_device_thread: bool = True
    goes_ahead: bool | None = None
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
