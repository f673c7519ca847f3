"""Classification with labels, and yes/no judgement of a candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import Document, chat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from random import Random

_MOODS: Mapping[str, tuple[str, ...]] = {
    "positive": (
        "I love this {0}.", "The {0} is great!", "What a wonderful {0}!",
        "This {0} made me happy.", "The {0} works very well.", "Best {0} ever.",
    ),
    "negative": (
        "I hate this {0}.", "The {0} is terrible.", "What an awful {0}!",
        "This {0} made me sad.", "The {0} broke at once.", "Worst {0} ever.",
    ),
    "neutral": (
        "This is my {0}.", "The {0} is {1}.", "There is one {0} on the table.",
        "I saw the {1} {0}.", "The {0} came on {2}.", "It is the {0} from {3}.",
    ),
}  # fmt: skip
_INTENTS: Mapping[str, tuple[str, ...]] = {
    "question": (
        "Where is the {0}?", "How much is the {0}?", "When does the {0} come?",
        "Which {0} is {1}?", "Why is the {0} {1}?", "Is the {0} in {3}?",
    ),
    "request": (
        "Please send me the {0}.", "Give me the {1} {0}.", "Bring the {0} on {2}.",
        "Please order one {0}.", "Show me the {0}.", "Take the {0} to {3}.",
    ),
    "complaint": (
        "My {0} never came.", "The {0} is broken again.", "You sent the wrong {0}.",
        "The {1} {0} is too late.", "I paid twice for the {0}.", "The {0} is damaged.",
    ),
    "thanks": (
        "Thank you for the {0}.", "Thanks, the {0} came on {2}.", "Many thanks for the {1} {0}!",
        "I thank you for your help with the {0}.", "Thanks for the {0}!", "Thank you so much!",
    ),
}  # fmt: skip
_TOPICS: Mapping[str, tuple[str, ...]] = {
    "animals": tuple(lexicon.ANIMALS),
    "food": tuple(lexicon.FOODS),
    "sport": tuple(lexicon.SPORTS),
    "travel": lexicon.CITIES,
    "jobs": tuple(lexicon.JOBS),
}
_TOPIC_TEXTS = (
    "Today we talk about the {0}.", "I read a book about {0}.", "My friend told me about {0}.",
    "{1} knows everything about {0}.", "This is a page about {0}.",
)  # fmt: skip


def _labelled_text(rng: Random) -> tuple[list[str], str, str]:
    """Return the labels to choose from, a text and its label."""
    if rng.random() < 0.3:
        label = rng.choice(list(_TOPICS))
        word = rng.choice(_TOPICS[label])
        text = rng.choice(_TOPIC_TEXTS).format(word, lexicon.person_name(rng))
        return list(_TOPICS), text, label
    texts = rng.choice((_MOODS, _INTENTS))
    label = rng.choice(list(texts))
    text = rng.choice(texts[label]).format(
        rng.choice(lexicon.OBJECTS),
        rng.choice(lexicon.COLOURS),
        rng.choice(lexicon.DAYS),
        lexicon.place_name(rng),
    )
    return list(texts), text, label


def _classify(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    labels, text, label = _labelled_text(rng)
    others = [other for other in labels if other != label]
    offered = [label, *rng.sample(others, rng.randint(1, len(others)))]
    rng.shuffle(offered)
    question = f"Classify the text.\nLabels: {', '.join(offered)}\nText: {text}"
    return question, label, (text,)


def _compare(rng: Random) -> tuple[str, str, bool]:
    one, two = (rng.randint(1, 99) for _ in range(2))
    if one == two:
        two += 1
    largest = max(one, two)
    candidate = rng.choice((one, two))
    question = f"Which is larger, {one} or {two}?"
    return question, str(candidate), candidate == largest


def _membership(rng: Random) -> tuple[str, str, bool]:
    items = rng.sample((*lexicon.OBJECTS, *lexicon.FOODS), rng.randint(3, 6))
    is_in = rng.random() < 0.5
    outside = [item for item in lexicon.OBJECTS if item not in items]
    candidate = rng.choice(items if is_in else outside)
    return f"Name one of: {', '.join(items)}.", candidate, is_in


def _recall(rng: Random) -> tuple[str, str, bool]:
    name, other = lexicon.person_name(rng), lexicon.person_name(rng)
    code, wrong = rng.randint(100, 999), rng.randint(100, 999)
    is_right = rng.random() < 0.5 or code == wrong
    question = f"The code of {name} is {code}, that of {other} is {wrong}. "
    question += f"What is the code of {name}?"
    return question, str(code if is_right else wrong), is_right


def _copied(rng: Random) -> tuple[str, str, bool]:
    words = [lexicon.made_up_word(rng) for _ in range(rng.randint(2, 4))]
    shown = list(words)
    is_right = rng.random() < 0.5
    if not is_right:
        shown[rng.randrange(len(shown))] = lexicon.made_up_word(rng)
    return f"Repeat: {' '.join(words)}", " ".join(shown), shown == words


def _kind_of(rng: Random) -> tuple[str, str, bool]:
    groups = {
        "an animal": lexicon.ANIMALS,
        "a colour": lexicon.COLOURS,
        "a food": lexicon.FOODS,
        "a job": lexicon.JOBS,
        "a month": lexicon.MONTHS,
        "a sport": lexicon.SPORTS,
    }
    asked = rng.choice(list(groups))
    is_right = rng.random() < 0.5
    group = asked if is_right else rng.choice([g for g in groups if g != asked])
    candidate = rng.choice(groups[group])
    return f"Name {asked}.", candidate, is_right or candidate in groups[asked]


_JUDGED: tuple[Callable[[Random], tuple[str, str, bool]], ...] = (
    _compare,
    _membership,
    _recall,
    _copied,
    _kind_of,
)


def _judge(rng: Random) -> tuple[str, str, tuple[str, ...]]:
    question, candidate, is_right = rng.choice(_JUDGED)(rng)
    prompt = (
        f"Question: {question}\nCandidate: {candidate}\nIs it right? Say yes or no."
    )
    return prompt, "yes" if is_right else "no", (question, candidate)


def generate(rng: Random) -> Document:
    """Return a text to classify, or a candidate to judge."""
    kind, make = rng.choice((("classify", _classify), ("judge", _judge)))
    question, answer, entities = make(rng)
    turns = chat(
        *lexicon.system_messages(rng), ("user", question), ("assistant", answer)
    )
    return Document("labels", kind, turns, entities)


def check(document: Document) -> bool:
    """Return whether the answer is one of those asked for."""
    if document.kind == "judge":
        return document.answer in ("yes", "no")
    prompt = document.turns[-1].prompt
    labels = prompt.split("Labels: ")[1].split("\n")[0].split(", ")
    return document.answer in labels
