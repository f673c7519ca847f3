"""Random changes to what a corpus holds, where nobody looks at what they reach."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

CORPORA = Path(__file__).parent / "corpora"
WORDS = (b"\0", b"\xff", b'"', b"\\", b"[", b"]", b"{", b"}", b"(", b")", b"|", b"*", b"\n", b"9" * 30, b"1e999", b"\xf0\x9f\x98\x80")  # fmt: skip


def read_corpus(target: str) -> dict[str, bytes]:
    """Return the inputs that are kept for a target, by name."""
    files = sorted((CORPORA / target).iterdir())
    return {path.name: path.read_bytes() for path in files}


def mutate(source: random.Random, data: bytes, corpus: Sequence[bytes]) -> bytes:
    """Return something like ``data``."""
    for _ in range(source.choice((1, 1, 2, 4, 8))):
        start = source.randrange(len(data) + 1)
        end = min(len(data), start + source.choice((0, 1, 1, 4, 30)))
        kind = source.randrange(5)
        if kind == 0:
            middle = source.randbytes(source.choice((1, 1, 4)))
        elif kind == 1:
            middle = source.choice(WORDS)
        elif kind == 2:
            middle = data[start:end] * source.choice((0, 2, 3, 200))
        elif kind == 3:
            other = source.choice(corpus)
            at = source.randrange(len(other) + 1)
            middle = other[at : at + source.choice((1, 8, 64))]
        else:
            middle = bytes(byte ^ 1 << source.randrange(8) for byte in data[start:end])
        data = data[:start] + middle + data[end:]
    return data
