"""What ``pie.toml`` may say: the name of each setting, its type, and the flag that says the same."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, cast, get_args, get_type_hints

from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.web.shell.config import ShellConfig
from pie_trio.config import (
    SERVER_LIMITS,
    ControlConfig,
    InstanceLimits,
    SharedLimits,
)

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = [
    "LIMIT_OPTIONS",
    "MODEL_NAME",
    "MODEL_OPTIONS",
    "SECTIONS",
    "SETTINGS",
    "Setting",
    "known_keys",
]


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be configured.

    Attributes:
        where: Its table, and its key.
        kind: ``bool``, ``int``, ``float``, ``str``, ``Path``, or ``list`` of texts.
        dest: Where the flag that says the same stores its value; empty if there is none.
        default: Where there is no flag; flags have their own.
        least: Where there is no flag: the lowest number.
        is_optional: It may be ``"none"``, for no limit.
    """

    where: tuple[str, ...]
    kind: type
    dest: str = ""
    default: Any = None
    least: float = 0
    is_optional: bool = False

    @property
    def name(self) -> str:
        """As ``server.port``."""
        return ".".join(self.where)


SHORTEST = 0.001
"""Times of connections and streams: nothing works in none at all."""

SECTIONS = {
    "model": "the first is the default",
    "server": "where it listens, and where it keeps its data",
    "keys": "who may use it",
    "grants": "what programs may do that ask for it; hosts are server.allow_http",
    "control": "batches, and what happens when KV pages are short",
    "limits.instance": "what one instance may use",
    "limits.user": "what all instances of a user may use together",
    "limits.server": "what all instances of the server may use together",
    "limits.clients": "programs, and the events of instances",
    "connections": "limits and times of connections",
}
"""Each with what it is about."""

FLAGS: dict[str, dict[str, tuple[str, type]]] = {
    "server": {
        "host": ("host", str),
        "port": ("port", int),
        "uds": ("uds", Path),
        "tls_cert": ("tls_cert", Path),
        "tls_key": ("tls_key", Path),
        "names": ("names", list),
        "data_dir": ("data_dir", Path),
        "cache_dir": ("cache_dir", Path),
        "store": ("store", Path),
        "grace": ("grace", float),
        "engine": ("engine", str),
        "log_format": ("log_format", str),
        "log_level": ("log_level", str),
        "warm": ("warm", int),
        "max_instances": ("max_instances", int),
        "allow_http": ("allow_http", list),
    },
    "keys": {"mode": ("keys", str)},
    "grants": {
        name: (f"allow_{name}", bool)
        for name in ("logits", "publish", "topics", "spawn")
    },
    "control": {
        "policy": ("policy", str),
        "contention": ("contention", str),
        "go_ahead": ("go_ahead", bool),
        "swap_mib": ("swap_mib", int),
    },
    "limits.instance": {"timeout": ("timeout", float), "memory": ("memory", int)},
}
"""Where in the file stands what a flag says."""

MODEL_NAME: dict[str, type] = {"name": str, "directory": Path, "adapters": dict}
MODEL_OPTIONS: dict[str, type] = {
    "kv_pages": int,
    "kv_memory": str,
    "dtype": str,
    "threads": int,
    "kernels": str,
    "quantize": str,
    "device": str,
    "tensor_parallel": int,
    "replicas": int,
}
"""Keys of ``[[model]]``; a flag of that name holds for all models."""

LIMIT_OPTIONS = {"user_limits": "limits.user", "server_limits": "limits.server"}
"""Flags that take ``KIND=N``, with the table that says the same."""


def _numbers(
    section: str,
    config: Any,
    *,
    without: Collection[str] = (),
    least: int = 0,
    least_seconds: float = 0,
) -> list[Setting]:
    """Return a setting for each number in a dataclass."""
    found = list[Setting]()
    hints = get_type_hints(cast("type[object]", type(config)))
    for field in fields(config):
        kinds = get_args(hints[field.name]) or (hints[field.name],)
        (kind, *others) = [kind for kind in kinds if kind is not NoneType]
        if kind in (int, float) and not others and field.name not in without:
            where = (*section.split("."), field.name)
            default = getattr(config, field.name)
            is_optional = NoneType in kinds
            lowest = least if kind is int else least_seconds
            found.append(
                Setting(where, kind, "", default, lowest, is_optional=is_optional)
            )
    return found


SETTINGS = (
    *(
        Setting((*section.split("."), key), kind, dest)
        for section, keys in FLAGS.items()
        for key, (dest, kind) in keys.items()
    ),
    # What has a flag stands above, in the flag's units.
    *_numbers(
        "control", ControlConfig(), without=("swap_bytes", "max_instances"), least=1
    ),
    *_numbers(
        "limits.instance", InstanceLimits(), without=("memory_bytes", "wall_seconds")
    ),
    *_numbers("limits.user", SharedLimits()),
    *_numbers("limits.server", SERVER_LIMITS),
    *_numbers("limits.clients", ServerLimits(), least=1, least_seconds=SHORTEST),
    # It follows from the time that instances have to end.
    *_numbers(
        "connections",
        ShellConfig(),
        without=("drain_seconds",),
        least=1,
        least_seconds=SHORTEST,
    ),
)


def known_keys() -> dict[tuple[str, ...], list[str]]:
    """Return the keys of each table, the file itself first."""
    found: dict[tuple[str, ...], list[str]] = {(): ["model"]}
    for setting in SETTINGS:
        for depth in range(len(setting.where)):
            keys = found.setdefault(setting.where[:depth], [])
            if setting.where[depth] not in keys:
                keys.append(setting.where[depth])
    return found
