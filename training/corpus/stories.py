"""Short stories in plain English: many small choices, one thread through each."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import END_OF_TEXT, Document, Turn, chat

if TYPE_CHECKING:
    from random import Random

_TRAITS = (
    "little",
    "kind",
    "brave",
    "quiet",
    "clever",
    "cheerful",
    "gentle",
    "curious",
    "young",
    "lazy",
)
_WEATHER = (
    "sunny",
    "rainy",
    "windy",
    "snowy",
    "cold",
    "warm",
    "foggy",
    "cloudy",
    "bright",
    "stormy",
)
_MORALS = (
    "From that day on, they were best friends.",
    "They laughed all the way home.",
    "It was the best day of the whole year.",
    "That night, everyone slept well.",
    "They promised to meet again the next day.",
    "And they lived happily for many years.",
    "After that, nobody was afraid any more.",
    "They never forgot that day.",
)


class _Cast:
    """Everything a story mentions, chosen once."""

    def __init__(self, rng: Random) -> None:
        self.hero, self.friend = rng.sample(lexicon.NAMES, 2)
        self.she, self.her, self.hers = lexicon.pronouns(self.hero)
        self.trait = rng.choice(_TRAITS)
        self.animal = rng.choice(lexicon.ANIMALS)
        self.colour = rng.choice(lexicon.COLOURS)
        self.object = rng.choice(lexicon.OBJECTS)
        self.thing = f"{self.colour} {self.object}"
        self.place, self.other_place = rng.sample(lexicon.PLACES, 2)
        self.food = rng.choice(lexicon.FOODS)
        self.job = rng.choice(lexicon.JOBS)
        self.weather = rng.choice(_WEATHER)
        self.day = rng.choice(lexicon.DAYS)


def _opening(rng: Random, c: _Cast) -> str:
    start = rng.choice(
        (
            "Once upon a time, there was",
            "Long ago, there was",
            f"Near the {c.place} lived",
            "In a small village lived",
        )
    )
    who = rng.choice(("child", c.job))
    love = rng.choice(
        (
            f"{c.hero} loved {c.hers} {c.thing} more than anything.",
            f"{c.hero} had {lexicon.a(c.thing)}.",
            f"Every day, {c.hero} went to the {c.place} with {c.hers} {c.thing}.",
            f"{c.hero} always wanted to see the {c.other_place}.",
        )
    )
    return f"{start} {lexicon.a(c.trait)} {who} named {c.hero}. {love}"


def _setting(rng: Random, c: _Cast) -> str:
    she = c.she.capitalize()
    return rng.choice(
        (
            f"One {c.weather} {c.day}, {c.hero} walked to the {c.other_place}.",
            f"On a {c.weather} morning, {c.hero} met {c.friend} in the {c.place}.",
            f"One day, it was very {c.weather}. {she} stayed near the {c.place}.",
            f"That {c.day}, {c.friend} came to visit. They ate some {c.food}.",
        )
    )


def _problem(rng: Random, c: _Cast) -> str:
    return rng.choice(
        (
            f"Suddenly, the {c.object} was gone! {c.hero} looked everywhere.",
            f"Then {c.hero} heard a strange sound. It was {lexicon.a(c.animal)}!",
            f"But the {c.object} fell into the water. {c.hero} began to cry.",
            f"There {c.she} found {lexicon.a(c.animal)} that could not walk.",
            f"But {lexicon.a(c.animal)} took the {c.object} and ran away.",
            f"Soon {c.hero} was lost, and it was getting dark.",
        )
    )


def _speech(rng: Random, c: _Cast) -> str:
    line = rng.choice(
        (
            "Do not worry. I will help you.",
            "What happened? Tell me.",
            "We can do it together.",
            "Let us think first.",
            f"I know who can help us. Ask the {c.job}.",
            "Follow me. I know the way.",
        )
    )
    return f'"{line}" said {rng.choice((c.friend, f"the {c.animal}", c.friend))}.'


def _solution(rng: Random, c: _Cast) -> str:
    return rng.choice(
        (
            f"They looked in the {c.other_place} and found it under a tree.",
            f"The {c.job} gave them some {c.food} and showed them the way.",
            f"{c.hero} shared {c.hers} {c.food}, and the {c.animal} was happy.",
            f"Together they carried the {c.animal} to the {c.job}.",
            f"So {c.hero} and {c.friend} built a small boat and crossed the lake.",
            f"The {c.animal} led them out of the {c.other_place}.",
        )
    )


def _feeling(rng: Random, c: _Cast) -> str:
    feeling = rng.choice(("happy", "proud", "calm", "excited"))
    return rng.choice(
        (
            f"{c.hero} was very {feeling}.",
            f'"Thank you!" said {c.hero}. {c.she.capitalize()} was {feeling}.',
            f"{c.friend} was {feeling} too.",
        )
    )


def generate(rng: Random) -> Document:
    """Return a story: two in three as plain text, else as an answer in a chat."""
    c = _Cast(rng)
    parts = [_opening(rng, c), _setting(rng, c), _problem(rng, c), _speech(rng, c)]
    reply = _speech(rng, c)
    if rng.random() < 0.5 and reply.split(" said ")[0] not in parts[-1]:
        parts.append(reply)
    parts += [_solution(rng, c), _feeling(rng, c), rng.choice(_MORALS)]
    story = " ".join(parts)
    entities = (c.hero, c.friend, c.thing, c.place)
    if rng.random() < 0.67:
        turns: tuple[Turn, ...] = (Turn("", story + END_OF_TEXT),)
        return Document("stories", "plain", turns, entities)
    ask = rng.choice(
        (
            f"Tell me a story about {c.hero} and {lexicon.a(c.thing)}.",
            f"Tell me a story about {c.hero}.",
            f"Write a short story about {c.hero} and {c.friend}.",
            "Tell me a story.",
        )
    )
    turns = chat(*lexicon.system_messages(rng), ("user", ask), ("assistant", story))
    return Document("stories", "asked", turns, entities)


def words(text: str) -> list[str]:
    """Return the words of a story in lower case."""
    return re.findall(r"[a-z]+", text.lower())


def check(document: Document) -> bool:
    """Return whether the story is whole sentences about its own hero."""
    story = document.answer
    return story[-1] in ".!" and document.entities[0] in story
