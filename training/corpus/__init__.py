"""The synthetic corpus: one module a family of text, drawn without end from a seed."""

from training.corpus.documents import Document, Split, Turn
from training.corpus.stream import (
    COPY_FAMILY,
    DRILL_FAMILY,
    FAMILIES,
    LONG_FAMILY,
    draw,
    stream,
)

__all__ = [
    "COPY_FAMILY",
    "DRILL_FAMILY",
    "FAMILIES",
    "LONG_FAMILY",
    "Document",
    "Split",
    "Turn",
    "draw",
    "stream",
]
