"""Programs that are components: what ``pie build`` puts into the file beside the program.

A component is a list of sections; one of our own carries the manifest as JSON. Other tools skip
it, and a component without it is a program that says nothing of itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pie_trio.application.authoring.manifest import Limits, Manifest
from pie_trio.application.services import Grants
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

__all__ = ["PackedProgram", "add_manifest", "is_wasm", "load_packed"]

MAGIC = b"\0asm"
COMPONENT_LAYER = b"\x01\x00"
HEADER_SIZE = 8
CUSTOM_SECTION = 0
SECTION = b"pie:manifest"


@dataclass(frozen=True, slots=True)
class PackedProgram:
    """A component in a file, that has not been compiled yet.

    Attributes:
        path: Of the file.
        name: What to call it.
        manifest: Empty if there is none in it.
        digest: SHA-256 of the file.
    """

    path: Path
    name: str
    manifest: Manifest
    digest: str


def is_wasm(data: bytes) -> bool:
    """Say whether it begins as a file of Wasm does, be it a component or not."""
    return data.startswith(MAGIC)


def load_packed(path: Path, label: str = "") -> PackedProgram:
    """Read a component and its manifest.

    Args:
        path: Of the file.
        label: What messages call it; empty for the path.

    Raises:
        ProgramError: It cannot be read, or is no component.
    """
    label = label or str(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise ProgramError(
            f"there is no program at {label}: `pie build` makes one of a folder or a .py file"
        ) from None
    except OSError as error:
        raise ProgramError(f"cannot read {label}: {error.strerror}") from error
    if data[:4] != MAGIC or data[6:HEADER_SIZE] != COMPONENT_LAYER:
        raise ProgramError(
            f"{label} is not a Wasm component: expected what `pie build` makes, or a component "
            "for the world `pie:inferlet/inferlet`"
        )
    manifest = Manifest()
    for name, content in _custom_sections(data, label):
        if name == SECTION:
            manifest = _decode(content, label)
    digest = hashlib.sha256(data).hexdigest()
    return PackedProgram(path, manifest.name or path.stem, manifest, digest)


def add_manifest(component: bytes, manifest: Manifest) -> bytes:
    """Return a component with a manifest at its end."""
    content = json.dumps(dataclasses.asdict(manifest)).encode()
    payload = _number(len(SECTION)) + SECTION + content
    return component + bytes([CUSTOM_SECTION]) + _number(len(payload)) + payload


def _decode(content: bytes, label: str) -> Manifest:
    try:
        members: dict[str, Any] = dict(json.loads(content))
        _check_types(members)
        grants = members.pop("grants")
        if grants is not None:
            grants["http"] = tuple(grants["http"])
            grants = Grants(**grants)
        limits = Limits(**members.pop("limits"))
        for name in ("dependencies", "publish"):
            members[name] = tuple(members.get(name, ()))
        return Manifest(**members, grants=grants, limits=limits)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ProgramError(
            f"the manifest in {label} is of another version of Pie: build it again"
        ) from error


def _check_types(members: Mapping[str, Any]) -> None:
    """Raise unless the values are what :func:`add_manifest` writes: a component may be forged."""
    texts: list[object] = [members.get(k, "") for k in ("name", "description", "entry")]
    for name in ("dependencies", "publish"):
        texts += members.get(name, ())
    grants: dict[str, Any] = members["grants"] or {}
    texts += grants.get("http", ())
    flags = [value for name, value in grants.items() if name != "http"]
    limits: dict[str, Any] = members["limits"]
    numbers = [value for value in limits.values() if value is not None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("expected text")
    if not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("expected true or false")
    if not all(type(number) in (int, float) and number > 0 for number in numbers):
        raise ValueError("expected numbers above 0")


def _custom_sections(data: bytes, label: str) -> Iterator[tuple[bytes, bytes]]:
    offset = HEADER_SIZE
    while offset < len(data):
        kind = data[offset]
        size, start = _read_number(data, offset + 1)
        offset = start + size
        if offset > len(data):
            raise ProgramError(f"{label} is cut short: build or copy it again")
        if kind == CUSTOM_SECTION:
            name_size, name_start = _read_number(data, start)
            name_end = name_start + name_size
            yield data[name_start:name_end], data[name_end:offset]


def _number(value: int) -> bytes:
    """Return an unsigned number in LEB128."""
    encoded = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        encoded.append(low | (0x80 if value else 0))
        if not value:
            return bytes(encoded)


def _read_number(data: bytes, offset: int) -> tuple[int, int]:
    """Return an unsigned number in LEB128, and where it ends."""
    value = shift = 0
    while offset < len(data):
        byte = data[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    return value, offset
