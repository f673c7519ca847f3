"""What a small model learns last, for more of it later in a run.

All of it takes choosing where to copy from, not only going on with a copy: the other
half first, the next field of a schema, the fact with both this name and this relation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.corpus import labels, plans, recall, records, tool_calls

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from training.corpus.documents import Document


def _retrieve(rng: Random) -> Document:
    return recall.retrieve_document(rng, rng.randint(2, 14))


def _judge(rng: Random) -> Document:
    # Several verdicts a question, as one teaches a single bit.
    return labels.judge_document(rng, rng.randint(2, 5))


_DRILLS: tuple[tuple[Callable[[Random], Document], float], ...] = (
    (lambda rng: plans.make(rng, "merge"), 2.0),
    (lambda rng: plans.make(rng, "recursion"), 3.5),
    (lambda rng: plans.make(rng, "combine"), 3.0),
    (_judge, 6.0),
    (labels.classify_document, 0.5),
    (lambda rng: records.make(rng, "extract"), 2.0),
    (lambda rng: records.make(rng, "invent"), 3.0),
    (tool_calls.generate, 1.5),
    (recall.generate_copy, 1.5),
    (_retrieve, 2.0),
)


def generate(rng: Random) -> Document:
    """Return a document of one of the other families, of a kind that is hard."""
    makers, weights = zip(*_DRILLS, strict=True)
    make: Callable[[Random], Document] = rng.choices(makers, weights)[0]
    return make(rng)
