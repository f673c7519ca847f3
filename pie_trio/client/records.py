"""What a server says of its programs, instances and models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "InstanceStatus",
    "LogLine",
    "Logs",
    "Program",
    "make_program",
    "make_status",
]


@dataclass(frozen=True, slots=True)
class Program:
    """A program on a server.

    Attributes:
        name: What it is launched by.
        sha256: Of what was uploaded.
        num_bytes: Of what was uploaded.
        is_built_in: It comes with Pie.
        state: ``ready``; or, where it is a component, ``compiling`` or ``failed``.
        outcome: ``created``, ``replaced`` or ``unchanged`` where it was just uploaded.
        message: Why it has failed; else empty.
        documentation: What it says of itself; None in a list, or before it is ready.
        arguments: JSON Schema of its arguments; None in a list, or before it is ready.
        raw: All that the server has said.
    """

    name: str
    sha256: str
    num_bytes: int
    is_built_in: bool
    state: str
    outcome: str
    message: str
    documentation: str | None
    arguments: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """An instance at one moment.

    Attributes:
        instance_id: Its id.
        program: Name of its program.
        state: ``running``, ``succeeded``, ``failed`` or ``cancelled``.
        is_detached: It outlives the client that launched it.
        seconds: Since its launch, or up to its end.
        num_pages: Pages of KV cache that it holds.
        tokens_sampled: Tokens that the model has made for it.
        raw: All that the server has said.
    """

    instance_id: str
    program: str
    state: str
    is_detached: bool
    seconds: float
    num_pages: int
    tokens_sampled: int
    raw: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that an instance has logged or printed.

    Attributes:
        source: ``stdout``, ``stderr``, or a level from ``debug`` to ``error``.
        text: The line.
        at: In seconds since 1970.
    """

    source: str
    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Logs:
    """What is kept of an instance's log.

    Attributes:
        lines: The latest ones, in order.
        num_lost: Lines before them.
    """

    lines: Sequence[LogLine]
    num_lost: int


def make_program(raw: Mapping[str, Any]) -> Program:
    """Return a program from the server's answer."""
    return Program(
        name=raw["name"],
        sha256=raw["sha256"],
        num_bytes=raw["bytes"],
        is_built_in=raw["built_in"],
        state=raw.get("state", "ready"),
        outcome=raw.get("outcome", ""),
        message=raw.get("message", ""),
        documentation=raw.get("documentation"),
        arguments=raw.get("arguments"),
        raw=raw,
    )


def make_status(raw: Mapping[str, Any]) -> InstanceStatus:
    """Return the state of an instance from the server's answer."""
    return InstanceStatus(
        instance_id=raw["id"],
        program=raw["program"],
        state=raw["state"],
        is_detached=raw["detached"],
        seconds=raw["seconds"],
        num_pages=raw["pages"],
        tokens_sampled=raw["tokens_sampled"],
        raw=raw,
    )
