"""The mix of the families, as an infinite stream of documents."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from training.corpus import (
    code,
    drills,
    labels,
    plans,
    react,
    recall,
    records,
    stories,
    talk,
    tool_calls,
)
from training.corpus.documents import Document, Split

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping


@dataclass(frozen=True, slots=True)
class Family:
    """How a family is made, how it is checked, and its share of the documents."""

    generate: Callable[[Random], Document]
    check: Callable[[Document], bool]
    weight: float


FAMILIES: Mapping[str, Family] = {
    "stories": Family(stories.generate, stories.check, 0.9),
    "talk": Family(talk.generate, talk.check, 0.7),
    "react": Family(react.generate, react.check, 1.7),
    "tool_calls": Family(tool_calls.generate, tool_calls.check, 2.2),
    "code": Family(code.generate, code.check, 0.8),
    "records": Family(records.generate, records.check, 2.8),
    "labels": Family(labels.generate, labels.check, 1.6),
    "plans": Family(plans.generate, plans.check, 2.2),
    "recall": Family(recall.generate, recall.check, 2.8),
}
# More of these at the start teaches copying early, on which all else rests; the long
# ones come last, with the long rows.
COPY_FAMILY = Family(recall.generate_copy, recall.check, 1.0)
LONG_FAMILY = Family(recall.generate_long, recall.check, 1.0)
DRILL_FAMILY = Family(
    drills.generate, lambda document: FAMILIES[document.family].check(document), 1.0
)


def draw(family: Family, rng: Random, split: Split) -> Document:
    """Return the next document of ``family`` that belongs to ``split``."""
    while True:
        document = family.generate(rng)
        if document.is_in(split):
            return document


def stream(
    seed: int,
    split: Split = Split.TRAIN,
    *,
    copy_share: float = 0.0,
    long_share: float = 0.0,
    drill_share: float = 0.0,
) -> Iterator[Document]:
    """Yield documents without end; the same seed yields the same documents.

    Args:
        seed: Also keyed by ``split``, so that no seed is shared between splits.
        split: Which entities the documents are about.
        copy_share: How many documents are exact copies, beyond the family's share.
        long_share: How many are copying or retrieval from several hundred tokens.
        drill_share: How many are of the kinds that are learned last.
    """
    rng = Random(f"{split.value} {seed}")
    families = list(FAMILIES.values())
    weights = [family.weight for family in families]
    while True:
        form = rng.random()
        if form < copy_share:
            family = COPY_FAMILY
        elif form > 1 - long_share:
            family = LONG_FAMILY
        elif form < copy_share + drill_share:
            family = DRILL_FAMILY
        else:
            family = rng.choices(families, weights)[0]
        yield draw(family, rng, split)
