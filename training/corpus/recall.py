"""Copying a span exactly, and finding one fact among many in a long context."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import Document, chat

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

# A pair of words such as "red kite" is drawn without putting it back, so that every
# question has one answer.
_RELATIONS = (
    ("The code of {k} is {v}.", "What is the code of {k}?", "The code of {k} is {v}."),
    ("{k} lives in {v}.", "Where does {k} live?", "{k} lives in {v}."),
    ("{k} keeps the {v}.", "What does {k} keep?", "{k} keeps the {v}."),
    ("The {v} belongs to {k}.", "What belongs to {k}?", "The {v} belongs to {k}."),
)


def random_span(rng: Random, num_words: int) -> str:
    """Return ``num_words`` words and numbers that only copying can predict."""
    makers = (
        lexicon.made_up_word,
        lambda r: str(lexicon.number(r)),
        lambda r: r.choice(lexicon.OBJECTS),
        lambda r: r.choice(lexicon.COLOURS),
        lexicon.person_name,
        lambda r: r.choice(lexicon.PLACES),
        lexicon.odd_string,
    )
    weights = (3, 1, 1, 1, 1, 1, 0.4)
    return " ".join(rng.choices(makers, weights)[0](rng) for _ in range(num_words))


def copy_question(span: str) -> str:
    """Return the request to repeat ``span``."""
    return f"Repeat exactly.\n{span}"


def copy_document(rng: Random, num_words: int) -> Document:
    """Return a request to repeat a span of ``num_words`` words, and the span."""
    span = random_span(rng, num_words)
    messages = (("user", copy_question(span)), ("assistant", span))
    turns = chat(*lexicon.system_messages(rng), *messages)
    return Document("recall", "copy", turns, (span,))


def _facts(rng: Random, count: int) -> list[tuple[str, str, str]]:
    """Return ``count`` statements, each with its question and its answer."""
    facts: list[tuple[str, str, str]] = []
    used: set[tuple[str, int]] = set()
    while len(facts) < count:
        name, relation = lexicon.person_name(rng), rng.randrange(len(_RELATIONS))
        if (name, relation) in used:
            continue
        used.add((name, relation))
        thing = f"{rng.choice(lexicon.COLOURS)} {rng.choice(lexicon.OBJECTS)}"
        values = (str(rng.randint(1000, 9999)), lexicon.place_name(rng), thing, thing)
        slots = {"k": name, "v": values[relation]}
        statement, question, answer = (
            text.format(**slots) for text in _RELATIONS[relation]
        )
        facts.append((statement, question, answer))
    return facts


def notes_question(statements: Sequence[str], question: str) -> str:
    """Return ``question`` after notes, one a line."""
    notes = "\n".join(f"- {statement}" for statement in statements)
    return f"Notes:\n{notes}\nQuestion: {question}"


def retrieve_document(rng: Random, num_facts: int) -> Document:
    """Return notes, questions about one to three of them, and the answers."""
    facts = _facts(rng, num_facts)
    asked = rng.sample(facts, min(num_facts, rng.choice((1, 1, 2, 3))))
    statements = [statement for statement, _, _ in facts]
    _, question, answer = asked[0]
    messages = [
        ("user", notes_question(statements, question)),
        ("assistant", answer),
    ]
    for _, question, answer in asked[1:]:
        messages += [("user", f"Question: {question}"), ("assistant", answer)]
    turns = chat(*lexicon.system_messages(rng), *messages)
    return Document("recall", "retrieve", turns, tuple(a for _, _, a in asked))


def generate(rng: Random) -> Document:
    """Return a copy of up to 36 words or a retrieval from up to 14 notes."""
    if rng.random() < 0.55:
        return generate_copy(rng)
    return retrieve_document(rng, rng.randint(2, 14))


def generate_copy(rng: Random) -> Document:
    """Return a copy of up to 36 words."""
    return copy_document(rng, rng.randint(2, 36))


def generate_long(rng: Random) -> Document:
    """Return the same from several hundred tokens."""
    if rng.random() < 0.35:
        return copy_document(rng, rng.randint(40, 150))
    return retrieve_document(rng, rng.randint(15, 90))


def check(document: Document) -> bool:
    """Return whether every answer stands in the prompt before it."""
    prompt = document.turns[0].prompt
    if document.kind == "copy":
        return f"\n{document.answer}<" in prompt
    return all(
        turn.completion.removesuffix("<|im_end|>") in prompt for turn in document.turns
    )
