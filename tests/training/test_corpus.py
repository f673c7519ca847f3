from itertools import islice
from random import Random

import pytest

from training.corpus import FAMILIES, LONG_FAMILY, Split, draw, stream
from training.corpus.documents import IM_END, IM_START


@pytest.mark.parametrize("name", FAMILIES)
def test_every_document_passes_the_check_of_its_family(name: str) -> None:
    family, rng = FAMILIES[name], Random(1)
    for split in Split:
        for _ in range(100):
            document = draw(family, rng, split)
            assert document.family == name
            assert family.check(document), document.text


def test_long_documents_pass_their_check() -> None:
    rng = Random(1)
    documents = [draw(LONG_FAMILY, rng, Split.TRAIN) for _ in range(20)]
    assert all(LONG_FAMILY.check(document) for document in documents)
    assert max(len(document.text) for document in documents) > 1500


def test_a_seed_gives_the_same_documents_again() -> None:
    first, again, other = (list(islice(stream(seed), 200)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("name", FAMILIES)
def test_train_and_held_out_share_no_entities(name: str) -> None:
    def entities(split: Split) -> set[tuple[str, ...]]:
        rng = Random(5)
        documents = (draw(FAMILIES[name], rng, split) for _ in range(300))
        return {document.entities for document in documents if document.entities}

    assert not entities(Split.TRAIN) & entities(Split.HELD_OUT)


def test_the_splits_of_one_seed_differ() -> None:
    train, held_out = (
        {document.text for document in islice(stream(1, split), 200)} for split in Split
    )
    # Short chats of closed knowledge ("Hello!") may be in both.
    assert len(train & held_out) < 10


def test_messages_are_balanced() -> None:
    for document in islice(stream(2), 300):
        assert document.text.count(IM_START) == document.text.count(IM_END)
        for turn in document.turns:
            assert turn.completion.count(IM_END) <= 1
