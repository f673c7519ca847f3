"""Options that several commands share: how they are declared, read and turned into configuration."""

from __future__ import annotations

import argparse
import math
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pie_trio.config import (
    ControlConfig,
    InstanceLimits,
    ModelConfig,
    SharedLimits,
)
from pie_trio.config_file import nearest
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "add_adapter_option",
    "add_control_options",
    "add_instance_options",
    "add_model_options",
    "add_replicas_option",
    "at_least_one",
    "choose_models",
    "control_config",
    "count",
    "instance_limits",
    "seconds",
    "shared_limits",
    "switch",
]

MIN_MEMORY_MIB, MAX_MEMORY_MIB = 64, 4096
"""The memory of a fresh guest, and all that 32 bits can address."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add which models are loaded, and how they are computed."""
    parser.set_defaults(adapters=[])  # for commands whose programs could not choose one
    parser.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]DIR",
        help="a model in the Hugging Face layout; repeat for several, the first is the default "
        "(default: $PIE_MODEL, else pie-tiny, which comes with Pie)",
    )
    parser.add_argument(
        "--kv-pages", type=count, metavar="N", help="KV pages of each engine of a model"
    )
    parser.add_argument(
        "--kv-memory",
        type=_size,
        metavar="SIZE",
        help="memory for the KV pages of each model instead of their number, for example 2GiB "
        "(default: what is there for pie serve, 256MiB else)",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "auto"],
        default="float32",
        help="of weights and KV cache (default: float32)",
    )
    parser.add_argument(
        "--threads",
        type=count,
        metavar="N",
        help="CPU threads of a step (default: by model size)",
    )
    parser.add_argument(
        "--kernels",
        choices=["auto", "torch", "native"],
        default="auto",
        help="what computes a step on the CPU: torch alone, or C++ for what torch is slow at "
        "(default: auto, the latter if it was built; pie doctor tells)",
    )
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="compute linear layers in 8 bits on the CPU: faster, with slightly different results",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda", "auto"],
        default="cpu",
        help="where models run: auto takes a GPU where there is one, FlashInfer is installed and "
        "--dtype is bfloat16 (default: cpu)",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=at_least_one,
        default=1,
        metavar="N",
        help="split each layer of a model over N GPUs, or over N processes of the CPU "
        "(default: 1)",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where compiled components are kept (default: $PIE_CACHE_DIR, else ~/.cache/pie)",
    )


def add_replicas_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--replicas``; the models must be an option too."""
    parser.add_argument(
        "--replicas",
        type=at_least_one,
        default=1,
        metavar="N",
        help="load each model so many times, each time on GPUs of its own, or in a process of its "
        "own on the CPU; each program runs on one of them (default: 1)",
    )


def add_adapter_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--adapter``; the models must be an option too."""
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[MODEL:]NAME=DIR",
        dest="adapters",
        help="a LoRA adapter of the model, as PEFT saves it, which programs use by its name; "
        "repeat for several, and name the model where there are several",
    )


def add_control_options(parser: argparse.ArgumentParser) -> None:
    """Add how batches are put together, and what happens at a shortage."""
    parser.add_argument(
        "--policy",
        metavar="NAME[:ARGS]",
        default=ControlConfig().policy,
        help="when a batch is dispatched: rendezvous, adaptive, eager, k:8, t:0.016, "
        "k_or_t:8,0.016 (default: rendezvous)",
    )
    parser.add_argument(
        "--contention",
        metavar="NAME",
        default=ControlConfig().contention,
        help="what happens when KV pages are short: ladder (drop unused exports, tell, suspend, "
        "end) or fcfs (end the newest) (default: ladder)",
    )
    parser.add_argument(
        "--go-ahead",
        type=switch,
        default=ControlConfig().goes_ahead,
        metavar="on|off",
        help="make the next step of decode streams while the device samples their tokens "
        "(default: on where steps leave the server a core, off else)",
    )
    parser.add_argument(
        "--swap-mib",
        type=count,
        metavar="N",
        help="host memory for the KV pages of suspended inferlets (default: 1024)",
    )


def add_instance_options(
    parser: argparse.ArgumentParser, *, num_warm: int, what: str
) -> None:
    """Add what an instance may use; ``what`` names it in the help."""
    parser.add_argument(
        "--warm",
        type=count,
        default=num_warm,
        metavar="N",
        help=f"guests to instantiate ahead of time (default: {num_warm})",
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help=f"end {what} after this time",
    )
    parser.add_argument(
        "--memory",
        type=_memory,
        metavar="MIB",
        help=f"memory that {what} may use (default: "
        f"{InstanceLimits().memory_bytes >> 20})",
    )
    parser.add_argument(
        "--allow-http",
        action="append",
        default=[],
        metavar="HOST",
        help=f"let {what} reach this host: HOST, HOST:PORT, *.HOST, or * for all public "
        "ones; local://HOST for one of this network; repeat for several (default: none)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="the key-value store, made when it is first used (default: store.db in "
        "$PIE_DATA_DIR, else in ~/.local/share/pie)",
    )


def control_config(options: argparse.Namespace) -> ControlConfig:
    """Return what `add_control_options` has read.

    Raises:
        ConfigError: There is no such policy.
    """
    from pie_trio.control.contention import make_contention_policy
    from pie_trio.control.policies import make_policy

    make_policy(options.policy)  # before the model is loaded
    make_contention_policy(options.contention)
    config = ControlConfig(
        policy=options.policy,
        contention=options.contention,
        goes_ahead=options.go_ahead,
    )
    if options.swap_mib is not None:
        config = replace(config, swap_bytes=options.swap_mib << 20)
    return config


def instance_limits(options: argparse.Namespace) -> InstanceLimits:
    """Return the limits that `add_instance_options` has read."""
    limits = InstanceLimits(wall_seconds=options.timeout)
    if options.memory is not None:
        limits = replace(limits, memory_bytes=options.memory << 20)
    return limits


def choose_models(options: argparse.Namespace) -> list[ModelConfig]:
    """Return the models that `add_model_options` has read, the first as the default.

    Raises:
        ConfigError: A directory is none, or two models have one name.
    """
    from pie_trio.application.run.setup import (
        default_model,
        parse_adapters,
        parse_model,
    )

    chosen = [parse_model(text) for text in options.model or ()] or [default_model()]
    names = [model.name for model in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name}: say --model NAME=DIR")
    if options.kv_pages is not None and options.kv_memory is not None:
        raise ConfigError("--kv-pages and --kv-memory say the same: give one of them")
    adapters = parse_adapters(options.adapters, chosen)
    return [
        replace(
            model,
            adapters=adapters[model.name],
            num_pages=options.kv_pages,
            kv_bytes=options.kv_memory and _read_size(options.kv_memory),
            dtype=options.dtype,
            num_threads=options.threads or None,
            kernels=options.kernels,
            quantize=options.quantize,
            device=options.device,
            tensor_parallel=options.tensor_parallel,
            replicas=getattr(options, "replicas", 1),  # of who serves many programs
        )
        for model in chosen
    ]


def count(text: str) -> int:
    """Read 0 or a positive number."""
    value = _integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def at_least_one(text: str) -> int:
    """Read a positive number."""
    value = _integer(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def switch(text: str) -> bool:
    """Read ``on`` or ``off``."""
    if text not in ("on", "off"):
        raise argparse.ArgumentTypeError(f"expected on or off, got {text!r}")
    return text == "on"


def shared_limits(texts: Iterable[str], what: str) -> dict[str, int]:
    """Read limits of what several instances use together, as ``KIND=N``.

    Args:
        texts: Of the command line.
        what: Names the option, for errors.

    Raises:
        ConfigError: There is no such kind, or it is no number.
    """
    known = asdict(SharedLimits())
    found = dict[str, int]()
    for text in texts:
        kind, _, number = text.partition("=")
        if kind not in known:
            raise ConfigError(
                f"{what} {text}: there is no limit {kind!r}{nearest(kind, known)}; there are "
                f"{', '.join(known)}"
            )
        if not (number.isascii() and number.isdigit()) or int(number) >= 1 << 63:
            raise ConfigError(
                f"{what} {text}: expected a number, for example {kind}={known[kind]}"
            )
        found[kind] = int(number)
    return found


def _size(text: str) -> str:
    """Check a size; it stays a text, as in a file."""
    try:
        _read_size(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _read_size(text: str) -> int:
    from pie_trio.application.engines.memory import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError:
        raise ConfigError(f"expected a size as 512MiB or 2GiB, got {text!r}") from None


def _memory(text: str) -> int:
    value = _integer(text)
    if not MIN_MEMORY_MIB <= value <= MAX_MEMORY_MIB:
        raise argparse.ArgumentTypeError(
            f"expected {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}, got {text}"
        )
    return value


def seconds(text: str) -> float:
    """Read a positive time in seconds."""
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value > 0:
            return value
    raise argparse.ArgumentTypeError(
        f"expected a positive number of seconds, got {text!r}"
    )


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
