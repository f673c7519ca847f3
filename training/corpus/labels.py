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


# A question, candidates that are right, and candidates that are wrong.
Judged = tuple[str, list[str], list[str]]


def _compare(rng: Random) -> Judged:
    one, two = rng.sample(range(1, 100), 2)
    question = f"Which is larger, {one} or {two}?"
    return question, [str(max(one, two))], [str(min(one, two))]


def _membership(rng: Random) -> Judged:
    items = rng.sample((*lexicon.OBJECTS, *lexicon.FOODS), rng.randint(3, 6))
    outside = [item for item in lexicon.OBJECTS if item not in items]
    return f"Name one of: {', '.join(items)}.", items, outside


def _recall(rng: Random) -> Judged:
    name, other = lexicon.person_name(rng), lexicon.person_name(rng)
    code, wrong = rng.sample(range(100, 1000), 2)
    question = f"The code of {name} is {code}, that of {other} is {wrong}. "
    question += f"What is the code of {name}?"
    return question, [str(code)], [str(wrong)]


def _copied(rng: Random) -> Judged:
    words = [lexicon.made_up_word(rng) for _ in range(rng.randint(2, 4))]
    wrongs = []
    for index in range(len(words)):
        shown = list(words)
        shown[index] = lexicon.made_up_word(rng)
        wrongs.append(" ".join(shown))
    return f"Repeat: {' '.join(words)}", [" ".join(words)], wrongs


def _kind_of(rng: Random) -> Judged:
    groups = {
        "an animal": lexicon.ANIMALS,
        "a colour": lexicon.COLOURS,
        "a food": lexicon.FOODS,
        "a job": lexicon.JOBS,
        "a month": lexicon.MONTHS,
        "a sport": lexicon.SPORTS,
    }
    asked = rng.choice(list(groups))
    wrongs = [
        rng.choice(words)
        for group, words in groups.items()
        if group != asked and not set(words) & set(groups[asked])
    ]
    return f"Name {asked}.", groups[asked], wrongs


_JUDGED: tuple[Callable[[Random], Judged], ...] = (
    _compare,
    _membership,
    _recall,
    _copied,
    _kind_of,
)
_VERDICT = "Is it right? Say yes or no."


def judge_document(rng: Random, num_candidates: int) -> Document:
    """Return a question and candidates for its answer, one a turn, each judged."""
    question, rights, wrongs = rng.choice(_JUDGED)(rng)
    messages: list[tuple[str, str]] = []
    candidates: list[str] = []
    for index in range(num_candidates):
        is_right = rng.random() < 0.5
        candidates.append(rng.choice(rights if is_right else wrongs))
        asked = f"Candidate: {candidates[-1]}\n{_VERDICT}"
        messages += [
            ("user", asked if index else f"Question: {question}\n{asked}"),
            ("assistant", "yes" if is_right else "no"),
        ]
    turns = chat(*lexicon.system_messages(rng), *messages)
    return Document("labels", "judge", turns, (question, *candidates))


def classify_document(rng: Random) -> Document:
    """Return a text with labels to choose from, and its label."""
    question, answer, entities = _classify(rng)
    turns = chat(
        *lexicon.system_messages(rng), ("user", question), ("assistant", answer)
    )
    return Document("labels", "classify", turns, entities)


def generate(rng: Random) -> Document:
    """Return a text to classify, or a candidate to judge."""
    if rng.random() < 0.5:
        return classify_document(rng)
    return judge_document(rng, 1)


def check(document: Document) -> bool:
    """Return whether the answer is one of those asked for."""
    if document.kind == "judge":
        return document.answer in ("yes", "no")
    prompt = document.turns[-1].prompt
    labels = prompt.split("Labels: ")[1].split("\n")[0].split(", ")
    return document.answer in labels
