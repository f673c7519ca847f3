"""The WIT as types with their names: what a random call needs to know, and the host has forgotten.

A codec of the host knows that a queue is a ``u32``; the WIT also says that it is a queue.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import inferlet_py

if TYPE_CHECKING:
    from collections.abc import Iterator

WIT = Path(inferlet_py.__file__).parent / "wit"
NOT_CALLS = frozenset({"types", "program", "compiler", "source"})
"""Interfaces that programs do not call."""


@dataclass(frozen=True)
class Type:
    """A type as it is used.

    Attributes:
        name: Of a primitive (``u32``), of what wraps others (``list``), or as declared.
        items: What is wrapped.
    """

    name: str
    items: tuple[Type, ...] = ()

    def __str__(self) -> str:
        inside = f"<{', '.join(map(str, self.items))}>" if self.items else ""
        return self.name + inside


@dataclass(frozen=True)
class Named:
    """A type that an interface declares.

    Attributes:
        kind: ``record``, ``enum``, ``variant``, ``flags``, or ``type`` for another name.
        interface: Where.
        members: Names, each with its type if it has one; of ``type``, one without a name.
    """

    kind: str
    interface: str
    name: str
    members: tuple[tuple[str, Type | None], ...]


@dataclass(frozen=True)
class Function:
    """A function of an interface."""

    interface: str
    name: str
    params: tuple[tuple[str, Type], ...]
    result: Type | None

    def __str__(self) -> str:
        return f"{self.interface}.{self.name}"

    @property
    def opens_ticket(self) -> bool:
        """Whether what it returns, if it does not fail, is a ticket."""
        return self.result is not None and _is_ticket(self.result)


def _is_ticket(kind: Type) -> bool:
    if kind.name in ("result", "option"):
        return bool(kind.items) and _is_ticket(kind.items[0])
    return kind.name == "ticket"


@dataclass(frozen=True)
class Wit:
    """All that programs may call, and the types of it by name."""

    functions: tuple[Function, ...]
    types: dict[str, Named]


def parse_type(text: str) -> Type:
    """Read a type, as ``result<option<ticket>, error>``."""
    name, _, rest = text.strip().partition("<")
    if not rest:
        return Type(name)
    assert rest.endswith(">"), f"{text}: brackets do not match"
    return Type(name.strip(), tuple(map(parse_type, _split(rest[:-1]))))


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += {"<": 1, "(": 1, ">": -1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts if part.strip()]


def _member(text: str, kind: str) -> tuple[str, Type | None]:
    if kind == "variant" and "(" in text:
        name, _, payload = text.partition("(")
        return name.strip(), parse_type(payload.removesuffix(")"))
    name, _, rest = text.partition(":")
    return name.strip().lstrip("%"), parse_type(rest) if rest else None


def _declared(interface: str, body: str) -> Iterator[Named]:
    for name, target in re.findall(r"^  type ([\w-]+) = ([^;]+);", body, re.M):
        yield Named("type", interface, name, (("", parse_type(target)),))
    blocks = r"^  (record|enum|variant|flags) ([\w-]+) \{(.*?)\n  \}"
    for kind, name, members in re.findall(blocks, body, re.S | re.M):
        read = tuple(_member(member, kind) for member in _split(members))
        yield Named(kind, interface, name, read)


def _functions(interface: str, body: str) -> Iterator[Function]:
    pattern = r"^  %?([\w-]+): func\(([^)]*)\)(?: -> ([^;]+))?;"
    for name, params, result in re.findall(pattern, body, re.M):
        read: list[tuple[str, Type]] = []
        for param in _split(params):
            param_name, _, kind = param.partition(":")
            read.append((param_name.strip().lstrip("%"), parse_type(kind)))
        result_type = parse_type(result) if result.strip() else None
        yield Function(interface, name, tuple(read), result_type)


@cache
def read_wit() -> Wit:
    """Return what ``inferlet_py/wit`` says now."""
    functions: list[Function] = []
    types: dict[str, Named] = {}
    for path in sorted(WIT.glob("*.wit")):
        text = re.sub(r"///?.*", "", path.read_text())
        found = re.findall(r"^interface ([\w-]+) \{(.*?)\n\}", text, re.S | re.M)
        for interface, body in found:
            types |= {named.name: named for named in _declared(interface, body)}
            if interface not in NOT_CALLS:
                functions += _functions(interface, body)
    return Wit(tuple(functions), types)
