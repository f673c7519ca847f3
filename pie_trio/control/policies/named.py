"""Policies by name."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from pie_trio.control.policies.builtin import (
    Adaptive,
    Eager,
    KOnly,
    KOrT,
    Rendezvous,
    TOnly,
)
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.control.policies.base import BatchPolicy

__all__ = ["ENTRY_POINTS", "make_policy", "policy_names"]

ENTRY_POINTS = "pie_trio.batch_policies"


def _plain(policy: Callable[[], BatchPolicy]) -> Callable[[Sequence[str]], BatchPolicy]:
    def make(arguments: Sequence[str]) -> BatchPolicy:
        if arguments:
            raise ValueError("it takes no arguments")
        return policy()

    return make


def _rendezvous(arguments: Sequence[str]) -> BatchPolicy:
    if not arguments:
        return Rendezvous()
    fraction, floor = arguments
    return Rendezvous(_seconds(fraction), _seconds(floor))


def _k(arguments: Sequence[str]) -> BatchPolicy:
    if not arguments:
        return KOnly()
    (k,) = arguments
    return KOnly(_count(k))


def _t(arguments: Sequence[str]) -> BatchPolicy:
    if not arguments:
        return TOnly()
    (seconds,) = arguments
    return TOnly(_seconds(seconds))


def _k_or_t(arguments: Sequence[str]) -> BatchPolicy:
    if not arguments:
        return KOrT()
    k, seconds = arguments
    return KOrT(_count(k), _seconds(seconds))


_BUILTIN: dict[str, Callable[[Sequence[str]], BatchPolicy]] = {
    "rendezvous": _rendezvous,
    "adaptive": _plain(Adaptive),
    "eager": _plain(Eager),
    "k": _k,
    "t": _t,
    "k_or_t": _k_or_t,
}


def policy_names() -> list[str]:
    """Return the names that :func:`make_policy` knows."""
    others = {entry.name for entry in entry_points(group=ENTRY_POINTS)}
    return [*_BUILTIN, *sorted(others - _BUILTIN.keys())]


def make_policy(text: str) -> BatchPolicy:
    """Return the policy of ``NAME`` or ``NAME:ARGUMENT,...``.

    An entry point names a callable, for example a class, that gets the arguments as strings.

    Raises:
        ConfigError: There is no such policy, or it does not take these arguments.
    """
    name, _, rest = text.partition(":")
    arguments = [part.strip() for part in rest.split(",")] if rest else []
    try:
        if name in _BUILTIN:
            return _BUILTIN[name](arguments)
        for entry in entry_points(group=ENTRY_POINTS, name=name):
            made: Any = entry.load()(*arguments)
            return _checked(made)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"batching policy {text!r}: {error}; for example `k:8`, `t:0.016`, `k_or_t:8,0.016`"
        ) from error
    raise ConfigError(
        f"there is no batching policy {name!r}: choose one of {', '.join(policy_names())}"
    )


def _checked(made: Any) -> BatchPolicy:
    if not callable(getattr(made, "wait_seconds", None)) or not hasattr(
        made, "max_batch"
    ):
        raise TypeError(f"{made!r} has no wait_seconds and max_batch")
    policy: BatchPolicy = made
    return policy


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(f"a count is 1 or more, got {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 3600:
        raise ValueError(f"expected seconds between 0 and 3600, got {text}")
    return value
