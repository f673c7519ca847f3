"""Texts that are planned, split and merged: skeleton, graph and recursion of thought.

``outline`` lists points, ``expand`` writes one of them, ``merge`` joins parts, and
``recursion`` splits a problem in two, solves small ones and combines the results.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import Document, chat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

_ASPECTS: Mapping[str, tuple[str, ...]] = {
    "Food": (
        "The {0} eats {1} and {2}.", "Every morning, the {0} looks for {1}.",
        "It also likes {2} very much.", "Fresh water is important too.",
    ),
    "Home": (
        "The {0} lives near the {3}.", "Its home is warm and dry.",
        "In winter, it moves to the {4}.", "It builds its home with care.",
    ),
    "Friends": (
        "The best friend of the {0} is the {5}.", "They meet near the {3} every day.",
        "They share {1} and play together.", "The {0} is never alone.",
    ),
    "Play": (
        "The {0} loves to play with the {6} {7}.", "It runs around the {4}.",
        "After that, it takes a long rest.", "Playing keeps it strong.",
    ),
    "Looks": (
        "The {0} is often {6}.", "It has bright eyes.",
        "People know the {0} from pictures.", "Some of them are {8} too.",
    ),
    "Sleep": (
        "The {0} sleeps near the {4}.", "It sleeps all night long.",
        "At dawn, it wakes up again.", "A tired {0} dreams of {1}.",
    ),
    "Dangers": (
        "The {0} is afraid of the {5}.", "It hides near the {3}.",
        "A careful {0} stays safe.", "Storms are a danger as well.",
    ),
    "History": (
        "Long ago, the {0} came from {9}.", "Old books tell of the {0}.",
        "People of {9} painted it.", "Today it is found everywhere.",
    ),
}  # fmt: skip


def _outline(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    topic = rng.choice((*lexicon.ANIMALS, lexicon.made_up_word(rng)))
    count = rng.randint(2, 5)
    # In one order, so that greedy decoding does not name a point twice.
    chosen = rng.sample(list(_ASPECTS), count)
    points = [point for point in _ASPECTS if point in chosen]
    question = f"Write an outline with {count} points.\nTopic: {topic}"
    lines = [f"{number}. {point}" for number, point in enumerate(points, 1)]
    return question, "\n".join(lines), (topic, *points)


def _expand(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    topic = rng.choice((*lexicon.ANIMALS, lexicon.made_up_word(rng)))
    aspect = rng.choice(list(_ASPECTS))
    slots = (
        topic,
        *rng.sample(lexicon.FOODS, 2),
        *rng.sample(lexicon.PLACES, 2),
        rng.choice([animal for animal in lexicon.ANIMALS if animal != topic]),
        rng.choice(lexicon.COLOURS),
        rng.choice(lexicon.OBJECTS),
        rng.choice(lexicon.COLOURS),
        rng.choice(lexicon.CITIES),
    )
    sentences = _ASPECTS[aspect]
    chosen = [sentences[0], *rng.sample(sentences[1:], 2)]
    question = f"Write about one point.\nTopic: {topic}\nPoint: {aspect}"
    return question, " ".join(s.format(*slots) for s in chosen), (topic, aspect)


def _merge(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    count = rng.randint(2, 4)
    if rng.random() < 0.5:
        parts = [_fact(rng) for _ in range(count)]
        merged = lexicon.join_and([part.rstrip(".") for part in parts]) + "."
    else:
        pool = (*lexicon.OBJECTS, *lexicon.FOODS, *lexicon.ANIMALS)
        items = rng.sample(pool, 3 * count)
        parts = []
        for _ in range(count):
            parts.append(", ".join(items.pop() for _ in range(rng.randint(1, 3))))
        merged = ", ".join(parts)
    listed = "\n".join(f"{number}. {part}" for number, part in enumerate(parts, 1))
    return f"Merge the parts.\n{listed}", merged, tuple(parts)


def _fact(rng: Random) -> str:
    name = lexicon.person_name(rng)
    thing = f"{rng.choice(lexicon.COLOURS)} {rng.choice(lexicon.OBJECTS)}"
    place = rng.choice(lexicon.PLACES)
    return rng.choice(
        (
            f"{name} has {lexicon.a(thing)}.",
            f"{name} goes to the {place}.",
            f"{name} found {lexicon.a(thing)} in the {place}.",
            f"{name} likes {rng.choice(lexicon.FOODS)}.",
        )
    )


def _recursion(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    """Return one step of reversing a list or of finding its largest number."""
    is_reverse = rng.random() < 0.6
    count = rng.choice((1, 2, 2, 3, 4, 5, 6, 7, 8))
    if is_reverse:
        items = [lexicon.made_up_word(rng) for _ in range(count)]
        verb, solved = "Reverse", items[::-1]
    else:
        numbers = rng.sample(range(1, 100), count)
        items = [str(number) for number in numbers]
        verb, solved = "Largest", [str(max(numbers))]
    if count <= 2:
        answer = f"Answer: {' '.join(solved)}"
    else:
        # Finding the middle would take counting, which so small a model does badly.
        answer = f"Split: {' '.join(items[:2])} | {' '.join(items[2:])}"
    return f"{verb}: {' '.join(items)}", answer, (verb, *items)


def _combine(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    if rng.random() < 0.6:
        one, two = (
            " ".join(lexicon.made_up_word(rng) for _ in range(rng.randint(1, 4)))
            for _ in range(2)
        )
        verb, answer = "Reverse", f"{two} {one}"
    else:
        first, second = rng.sample(range(1, 100), 2)
        one, two = str(first), str(second)
        verb, answer = "Largest", str(max(first, second))
    return (
        f"Combine: {one} | {two}\nTask: {verb}",
        f"Answer: {answer}",
        (verb, one, two),
    )


_KINDS: Mapping[str, Callable[[Random], tuple[str, str, tuple[str, ...]]]] = {
    "outline": _outline,
    "expand": _expand,
    "merge": _merge,
    "recursion": _recursion,
    "combine": _combine,
}
_WEIGHTS = (1, 2, 4, 2, 1)


def generate(rng: Random) -> Document:
    """Return one step of a plan."""
    return make(rng, rng.choices(list(_KINDS), _WEIGHTS)[0])


def make(rng: Random, kind: str) -> Document:
    """Return a document of one kind: ``merge``, for example."""
    question, answer, entities = _KINDS[kind](rng)
    turns = chat(
        *lexicon.system_messages(rng), ("user", question), ("assistant", answer)
    )
    return Document("plans", kind, turns, entities)


def check(document: Document) -> bool:
    """Return whether the answer has the form of its kind, outlines no point twice."""
    answer = document.answer
    if document.kind == "outline":
        asked = re.search(r"with (\d+) points", document.turns[-1].prompt)
        points = re.findall(r"^\d\. (\w+)$", answer, re.MULTILINE)
        count = len(set(points))
        return asked is not None and count == int(asked[1]) == len(answer.splitlines())
    form = {
        "expand": r"([A-Z][\w ,]+\. ?){3}",
        "merge": r"[^\n]+",
        "recursion": r"(Answer: [\w ]+|Split: [\w ]+ \| [\w ]+)",
        "combine": r"Answer: [\w ]+",
    }[document.kind]
    return re.fullmatch(form, answer) is not None
