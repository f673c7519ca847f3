"""Questions that need tools: what is asked, which calls it takes, what is answered.

Two families render the same tasks: ``react`` as a transcript, ``tool_calls`` as JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.toolbox import (
    SKIES,
    TOOLS,
    UNITS,
    JSONValue,
    Result,
    Toolbox,
    as_observation,
)

if TYPE_CHECKING:
    from random import Random

_SIGNS = {"+": "plus", "-": "minus", "*": "times"}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a tool: why, what, and what came back."""

    thought: str
    name: str
    arguments: dict[str, JSONValue]
    result: Result


@dataclass(frozen=True, slots=True)
class Task:
    """A question with the calls that answer it.

    Attributes:
        rounds: Calls that need nothing of each other share a round.
        tools: Names of the tools on offer, the needed ones among them unless ``kind``
            is ``missing``.
        store: What ``lookup`` finds.
    """

    kind: str
    question: str
    rounds: tuple[tuple[Call, ...], ...]
    answer: str
    tools: tuple[str, ...]
    store: dict[str, str | int]
    entities: tuple[str, ...]


class Scene:
    """Collects the calls of a task while a pattern makes it up.

    ``is_real`` takes every result from the tools themselves, as evaluation needs.
    Otherwise weather and search results are chance, lest the model learn them by heart.
    """

    def __init__(self, rng: Random, *, is_real: bool) -> None:
        self.rng, self.is_real = rng, is_real
        self.store: dict[str, str | int] = {}
        self.rounds: list[list[Call]] = []
        self.entities: list[str] = []

    def call(self, level: int, thought: str, name: str, **arguments: JSONValue) -> str:
        """Record a call in round ``level``; return its result as an observation."""
        while len(self.rounds) <= level:
            self.rounds.append([])
        result = Toolbox(self.store).call(name, arguments)
        if not self.is_real and name in ("weather", "search"):
            result = self._chance_result(name, str(next(iter(arguments.values()))))
        self.rounds[level].append(Call(thought, name, arguments, result))
        self.entities.append(" ".join(map(str, arguments.values())))
        return as_observation(result)

    def _chance_result(self, name: str, word: str) -> Result:
        rng = self.rng
        if name == "weather":
            return {"sky": rng.choice(SKIES), "degrees": rng.randint(-10, 35)}
        others = rng.sample(lexicon.OBJECTS, rng.choice((0, 1, 2, 2, 3)))
        return {"items": [f"{word} {other}" for other in others]}


Asked = tuple[str, str]  # question and answer


def _expression(rng: Random) -> str:
    expression = f"{lexicon.number(rng)} {rng.choice('+-*')} {lexicon.number(rng)}"
    if rng.random() < 0.25:
        expression += f" {rng.choice('+-*')} {rng.randint(1, 99)}"
    return expression


def _calculator(scene: Scene) -> Asked:
    rng = scene.rng
    if rng.random() < 0.3:
        return _word_problem(scene)
    expression = _expression(rng)
    asked = expression
    if rng.random() < 0.2:
        for sign, word in _SIGNS.items():
            asked = asked.replace(f" {sign} ", f" {word} ")
    question = rng.choice(
        ("What is {}?", "Compute {}.", "How much is {}?", "Calculate {}.")
    ).format(asked)
    thought = f"I need to compute {expression}."
    result = scene.call(0, thought, "calculator", expression=expression)
    return question, f"The result is {result}."


def _word_problem(scene: Scene) -> Asked:
    rng = scene.rng
    name, thing = lexicon.person_name(rng), rng.choice(lexicon.OBJECTS)
    first, second = lexicon.number(rng), lexicon.number(rng)
    sign, text = rng.choice(
        (
            ("+", "{n} has {a} {t}s and gets {b} more. How many {t}s are there now?"),
            ("+", "{n} counts {a} {t}s and {b} coins. How many is that?"),
            ("-", "{n} has {a} {t}s and loses {b} of them. How many are left?"),
            ("-", "There are {a} {t}s and {n} takes {b}. How many are left?"),
            ("*", "{n} has {a} boxes with {b} {t}s each. How many {t}s is that?"),
            ("*", "One {t} costs {a} coins. How much does {n} pay for {b}?"),
        )
    )
    expression = f"{first} {sign} {second}"
    thought = f"I need to compute {expression}."
    result = scene.call(0, thought, "calculator", expression=expression)
    question = text.format(n=name, t=thing, a=first, b=second)
    return question, f"The result is {result}."


def _weather(scene: Scene) -> Asked:
    city = lexicon.place_name(scene.rng)
    question = scene.rng.choice(
        (
            f"What is the weather in {city}?",
            f"How is the weather in {city} today?",
            f"Tell me the weather in {city}.",
            f"Is it warm in {city}?",
        )
    )
    thought = f"I need the weather in {city}."
    result = scene.call(0, thought, "weather", city=city)
    return question, f"The weather in {city} is {result}."


def _ask_for_key(scene: Scene, key: str) -> str:
    return scene.rng.choice(
        (
            f'What is the value of "{key}"?',
            f'Look up "{key}".',
            f'What is stored under "{key}"?',
        )
    )


def _lookup(scene: Scene) -> Asked:
    rng = scene.rng
    key = lexicon.key_name(rng)
    is_missing = rng.random() < 0.15
    if not is_missing:
        made_up = lexicon.made_up_word(rng)
        scene.store[key] = rng.choice((lexicon.number(rng), made_up))
    result = scene.call(0, f'I need the value of "{key}".', "lookup", key=key)
    question = _ask_for_key(scene, key)
    if is_missing:
        return question, f'There is no value for "{key}".'
    return question, f'The value of "{key}" is {result}.'


def _convert(scene: Scene) -> Asked:
    rng = scene.rng
    value, (source, target) = lexicon.number(rng), rng.choice(UNITS)
    question = rng.choice(
        (
            f"Convert {value} {source} to {target}.",
            f"How many {target} are {value} {source}?",
            f"What is {value} {source} in {target}?",
        )
    )
    thought = f"I need to convert {value} {source} to {target}."
    units: dict[str, JSONValue] = {"value": value, "from": source, "to": target}
    result = scene.call(0, thought, "convert", **units)
    return question, f"{value} {source} is {result} {target}."


def _search(scene: Scene) -> Asked:
    rng = scene.rng
    word = rng.choice((*lexicon.COLOURS, *lexicon.OBJECTS))
    question = rng.choice(
        (
            f"Which items have {word} in their name?",
            f"Search for {word}.",
            f"Find all items with {word}.",
        )
    )
    result = scene.call(0, f"I need to search for {word}.", "search", word=word)
    return question, f"I found {result}."


def _warmer(scene: Scene) -> Asked:
    one, two = (lexicon.place_name(scene.rng) for _ in range(2))
    for city in (one, two):
        scene.call(0, f"I need the weather in {city}.", "weather", city=city)
    first, second = (call.result["degrees"] for call in scene.rounds[0])
    expression = f"{first} - {second}"
    thought = f"I need to compute {expression}."
    result = scene.call(1, thought, "calculator", expression=expression)
    question = f"How many degrees warmer is {one} than {two}?"
    return question, f"{one} is {result} degrees warmer than {two}."


def _fahrenheit(scene: Scene) -> Asked:
    city = lexicon.place_name(scene.rng)
    scene.call(0, f"I need the weather in {city}.", "weather", city=city)
    degrees = scene.rounds[0][0].result["degrees"]
    thought = f"I need to convert {degrees} C to F."
    units: dict[str, JSONValue] = {"value": degrees, "from": "C", "to": "F"}
    result = scene.call(1, thought, "convert", **units)
    return f"How warm is {city} in F?", f"It is {result} F in {city}."


def _computed_value(scene: Scene) -> Asked:
    rng = scene.rng
    key = lexicon.key_name(rng)
    scene.store[key] = lexicon.number(rng)
    first = scene.call(0, f'I need the value of "{key}".', "lookup", key=key)
    second = lexicon.number(rng)
    verb, sign = rng.choice(
        (
            ("add {} to it", "+"),
            ("subtract {} from it", "-"),
            ("multiply it by {}", "*"),
        )
    )
    expression = f"{first} {sign} {second}"
    thought = f"I need to compute {expression}."
    result = scene.call(1, thought, "calculator", expression=expression)
    question = f'Look up "{key}" and {verb.format(second)}.'
    return question, f"The result is {result}."


def _weather_at_value(scene: Scene) -> Asked:
    key, city = lexicon.key_name(scene.rng), lexicon.place_name(scene.rng)
    scene.store[key] = city
    scene.call(0, f'I need the value of "{key}".', "lookup", key=key)
    thought = f"I need the weather in {city}."
    result = scene.call(1, thought, "weather", city=city)
    question = f'The value of "{key}" is a city. What is the weather there?'
    return question, f"The weather in {city} is {result}."


Pattern = Callable[[Scene], Asked]
SINGLE: tuple[Pattern, ...] = (_calculator, _weather, _lookup, _convert, _search)
CHAINED: tuple[Pattern, ...] = (
    _warmer,
    _fahrenheit,
    _computed_value,
    _weather_at_value,
)


def _offer(rng: Random, used: set[str], *, is_missing: bool) -> tuple[str, ...]:
    others = [name for name in TOOLS if name not in used]
    extra = rng.sample(others, rng.randint(1 if is_missing else 0, len(others)))
    # Sorted first, as the order of a set is another in every process.
    offered = extra if is_missing else [*sorted(used), *extra]
    return tuple(sorted(offered, key=lambda _: rng.random()))


def make_task(rng: Random, *, is_real: bool = False) -> Task:
    """Return a task of one to four calls, or one that no offered tool can answer."""
    scene = Scene(rng, is_real=is_real)
    form = rng.random()
    if form < 0.55:
        patterns = [rng.choice(SINGLE)]
    elif form < 0.8:
        patterns = [rng.choice(CHAINED)]
    else:
        patterns = rng.sample(SINGLE, rng.choice((2, 2, 2, 3, 4)))
    asked = [pattern(scene) for pattern in patterns]
    used = {call.name for calls in scene.rounds for call in calls}
    is_missing = len(patterns) == 1 and form < 0.06
    return Task(
        kind="missing" if is_missing else f"{len(patterns)} {patterns[0].__name__}",
        question=" ".join(question for question, _ in asked),
        rounds=() if is_missing else tuple(map(tuple, scene.rounds)),
        answer=" ".join(answer for _, answer in asked),
        tools=_offer(rng, used, is_missing=is_missing),
        store=scene.store,
        entities=tuple(scene.entities),
    )
