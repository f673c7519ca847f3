"""What reads bytes of strangers: each target takes any bytes, and raises only where there is a bug."""

from __future__ import annotations

import hashlib
import json
import socket
import tempfile
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.application.authoring.manifest import parse_block, parse_pyproject
from pie_trio.application.authoring.packing import load_packed
from pie_trio.application.engines.channel import Channel, ClosedError
from pie_trio.application.engines.messages import BatchReader, BatchWriter
from pie_trio.application.recording import files as recordings
from pie_trio.application.server.envelopes import decode_binary, decode_text
from pie_trio.application.server.instance_routes import read_message
from pie_trio.application.server.manifests import read_with_manifest
from pie_trio.engine_api import Batch, ForwardRequest, OutputSpec, PageCopy
from pie_trio.errors import BadArgumentError, GrammarError, ManifestError, ProgramError
from pie_trio.inference.grammar import GrammarVocabulary, compile_grammar
from tests.application.server.clients import archive_of
from tests.fuzz.calls import Choices

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.inference.grammar.compiling import GrammarKind

COMPONENT = b"\0asm\r\0\1\0"
FILES = ("pyproject.toml", "app.py", "lib/other.py")


def read_archive(data: bytes) -> None:
    """Read an upload."""
    with suppress(ProgramError, ManifestError):
        read_with_manifest("fuzz", data)


def read_files(data: bytes) -> None:
    """Read an archive that is whole, with any contents: its files, divided by NUL."""
    parts = data.split(b"\0", len(FILES) - 1)
    read_archive(archive_of(dict(zip(FILES, parts, strict=False))))


def read_manifest(data: bytes) -> None:
    """Read a manifest in a file of its own, and one in a module."""
    text = data.decode(errors="replace")
    with suppress(ManifestError):
        parse_pyproject(text)
    with suppress(ManifestError):
        parse_block(text, "app.py")


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")  # tens of times as fast as a disk
    folder = memory if memory.is_dir() else None
    return tempfile.TemporaryDirectory(prefix="pie-fuzz-", dir=folder)


def _write(name: str, data: bytes) -> Path:
    path = Path(_scratch().name, name)
    path.write_bytes(data)
    return path


def read_component(data: bytes) -> None:
    """Read a component with its sections; its head is always right."""
    with suppress(ProgramError):
        load_packed(_write("fuzz.wasm", COMPONENT + data))


def read_recording(data: bytes) -> None:
    """Read a recording, as it is and with the checksum that belongs to it."""
    digest = hashlib.sha256(data + b"\n").hexdigest()
    checked = data + b"\n" + json.dumps(["sha256", digest]).encode() + b"\n"
    for written in (data, checked):
        with suppress(ProgramError):
            recordings.read(_write("fuzz.pierec", written))


def read_frame(data: bytes) -> None:
    """Read a frame of a WebSocket, as bytes and as text."""
    with suppress(BadArgumentError):
        decode_binary(data)
    with suppress(BadArgumentError):
        read_message(decode_text(data.decode(errors="replace")))


# ---- messages of an engine's process ---------------------------------------------------
# They are pickled, and both ends are ours: so it is the messages that are random, and
# not their bytes.


def _array(choices: Choices) -> Any:
    numbers = [choices.byte() - 8 for _ in range(choices.below(6))]
    dtype = np.int64 if choices.seldom(16) else np.int32
    array = np.array(numbers, dtype)
    return array.reshape(1, -1) if choices.seldom(16) else array


def _forward(choices: Choices) -> ForwardRequest:
    outputs = tuple(
        OutputSpec(_array(choices), top_k=choices.below(3), logprobs=choices.seldom(64))
        for _ in range(choices.below(3))
    )
    tokens, positions, pages = (_array(choices) for _ in range(3))
    mask = np.ones((2, 2), np.bool_) if choices.seldom(32) else None
    return ForwardRequest(tokens, positions, pages, choices.byte(), mask, outputs)


def exchange_batches(data: bytes) -> None:
    """Send batches to the other end of a socket, which gets what was sent."""
    choices = Choices(data)
    writer, reader = BatchWriter(), BatchReader()
    left, right = (Channel(end) for end in socket.socketpair())
    try:
        for _ in range(1 + choices.below(4)):
            copy = PageCopy(*[choices.byte() for _ in range(5)])
            batch = Batch(
                tuple(_forward(choices) for _ in range(choices.below(5))),
                (copy,) * choices.below(2),
            )
            left.send(writer.write(batch))
            _check_same(batch, reader.read(right.receive()))
    finally:
        left.close()
        with suppress(ClosedError):
            right.try_receive()
        right.close()


def _check_same(sent: Batch, found: Batch) -> None:
    assert found.copies == sent.copies
    assert len(found.forwards) == len(sent.forwards)
    for one, other in zip(sent.forwards, found.forwards, strict=True):
        for name in ("token_ids", "positions", "page_ids"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.dtype == right.dtype, name
            np.testing.assert_array_equal(left, right)
        assert other.kv_len == one.kv_len
        assert (other.mask is None) == (one.mask is None)
        assert len(other.outputs) == len(one.outputs)
        for spec, same in zip(one.outputs, other.outputs, strict=True):
            np.testing.assert_array_equal(spec.rows, same.rows)
            assert (spec.top_k, spec.logprobs) == (same.top_k, same.logprobs)


# ---- grammars --------------------------------------------------------------------------


@cache
def _vocabulary() -> GrammarVocabulary:
    tokens = [bytes([byte]) for byte in range(256)]
    return GrammarVocabulary([*tokens, b""], eos_token_ids=[256])


def compile_text(kind: GrammarKind, data: bytes) -> None:
    """Compile a grammar, and walk a few steps through what comes out."""
    text = data.decode(errors="replace")
    with suppress(GrammarError):
        grammar = compile_grammar(kind, text, _vocabulary())
        matcher = grammar.matcher()
        mask = np.zeros(_vocabulary().num_mask_words, np.uint32)
        for _ in range(4):
            matcher.fill_mask(mask)
            allowed = np.flatnonzero(
                np.unpackbits(mask.view(np.uint8), bitorder="little")
            )
            if not len(allowed):
                break
            if not matcher.accept([int(allowed[len(allowed) // 2])]):
                raise AssertionError("a token that the mask allows is refused")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "archive": read_archive,
    "files": read_files,
    "manifest": read_manifest,
    "component": read_component,
    "recording": read_recording,
    "frame": read_frame,
    "engine": exchange_batches,
    "gbnf": partial(compile_text, "gbnf"),
    "regex": partial(compile_text, "regex"),
    "lark": partial(compile_text, "lark"),
    "json-schema": partial(compile_text, "json-schema"),
}
