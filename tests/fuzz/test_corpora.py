"""Readers of strangers' bytes, on what is kept for them and on random changes of it."""

from __future__ import annotations

import random
import zlib

import pytest

from tests.fuzz.mutations import CORPORA, mutate, read_corpus
from tests.fuzz.targets import TARGETS

NUM_MUTATIONS = 150


KEPT = [(target, name) for target in TARGETS for name in read_corpus(target)]


@pytest.mark.parametrize(("target", "name"), KEPT)
def test_what_is_kept_is_read_or_refused(target: str, name: str) -> None:
    TARGETS[target](read_corpus(target)[name])


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_changed_is_read_or_refused(target: str) -> None:
    corpus = [*read_corpus(target).values()]
    source = random.Random(zlib.crc32(target.encode()))
    for _ in range(NUM_MUTATIONS):
        data = mutate(source, source.choice(corpus), corpus)
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"input of {target}: {data!r}")
            raise


def test_every_target_has_inputs_and_all_inputs_have_a_target() -> None:
    assert {folder.name for folder in CORPORA.iterdir()} == TARGETS.keys()
    assert all(len(read_corpus(target)) >= 2 for target in TARGETS)


def test_what_is_kept_is_small() -> None:
    sizes = [len(data) for target in TARGETS for data in read_corpus(target).values()]
    assert max(sizes) < 10_000
    assert sum(sizes) < 200_000
