"""What goes over a WebSocket: JSON in text frames, and messages of bytes in binary frames.

A binary frame: a byte with the version (1), a byte with the length of the instance's id, the id
in ASCII, the number of the event in 8 bytes (big-endian; 0 from the client), the message.
"""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING, Any

from pie_trio.application.server.events import event_fields
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from pie_trio.application.server.events import Event

__all__ = ["decode_binary", "decode_text", "encode_event", "encode_text"]

VERSION = 1
HEADER = struct.Struct("!BB")
NUMBER = struct.Struct("!Q")

# Made once: json.dumps makes one at each call that has options.
_to_json = json.JSONEncoder(ensure_ascii=False).encode


def encode_event(instance_id: str, event: Event) -> str | bytes:
    """Return the frame of an event."""
    if isinstance(event.data, bytes):
        name = instance_id.encode("ascii")
        number = NUMBER.pack(event.number)
        return HEADER.pack(VERSION, len(name)) + name + number + event.data
    fields = {"type": event.kind, "instance": instance_id, "number": event.number}
    return encode_text(fields | event_fields(event))


def encode_text(fields: dict[str, Any]) -> str:
    """Return the text frame of an object."""
    text = _to_json(fields)
    return text.encode("utf-8", "replace").decode()  # no halves of surrogate pairs


def decode_text(text: str) -> dict[str, Any]:
    """Return what a client sent.

    Raises:
        BadArgumentError: It is no JSON object.
    """
    try:
        fields: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadArgumentError(f"expected a JSON object: {error}") from error
    if not isinstance(fields, dict):
        raise BadArgumentError("expected a JSON object")
    return fields  # pyright: ignore[reportUnknownVariableType]


def decode_binary(data: bytes) -> tuple[str, bytes]:
    """Return the id of an instance and the message to it.

    Raises:
        BadArgumentError: The header is none of ours.
    """
    if len(data) >= HEADER.size:
        version, length = HEADER.unpack_from(data)
        end = HEADER.size + length + NUMBER.size
        name = data[HEADER.size : HEADER.size + length]
        if version == VERSION and len(data) >= end and name.isascii():
            return name.decode(), data[end:]
    raise BadArgumentError(
        "a binary frame begins with a byte of value 1, a byte with the length of the "
        "instance's id, the id, and 8 bytes of value 0"
    )
