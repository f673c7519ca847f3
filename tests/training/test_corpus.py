import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest

import training
from training.corpus import DRILL_FAMILY, FAMILIES, LONG_FAMILY, Split, draw, stream
from training.corpus.documents import IM_END, IM_START, Document, chat


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


def test_drills_pass_the_check_of_the_family_they_are_of() -> None:
    rng = Random(1)
    documents = [draw(DRILL_FAMILY, rng, Split.TRAIN) for _ in range(200)]
    assert all(DRILL_FAMILY.check(document) for document in documents)
    assert {"judge", "merge", "invent", "copy"} <= {d.kind for d in documents}


def test_a_stream_has_the_share_of_drills_that_it_was_asked_for() -> None:
    kinds = [document.kind for document in islice(stream(1, drill_share=1.0), 100)]
    assert "plain" not in kinds  # no stories


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("1. Food\n2. Home", True),
        ("1. Food\n2. Food", False),
        ("1. Food\n2. Home\n3. Play", False),
        ("Food", False),
    ],
)
def test_an_outline_has_as_many_points_as_asked(answer: str, is_right: bool) -> None:
    question = "Write an outline with 2 points.\nTopic: owl"
    turns = chat(("user", question), ("assistant", answer))
    assert FAMILIES["plans"].check(Document("plans", "outline", turns)) is is_right


def test_a_seed_gives_the_same_documents_again() -> None:
    first, again, other = (list(islice(stream(seed), 200)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_seed_gives_the_same_documents_in_every_process() -> None:
    show = "from training.corpus import stream; s = stream(3)"
    show += "; print([next(s).text for _ in range(200)])"
    texts = {
        subprocess.run(
            [sys.executable, "-c", show],
            cwd=Path(training.__file__).parent.parent,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


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
