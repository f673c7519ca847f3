"""Functions that tests send to servers."""

import json
import math as mathematics
from collections import Counter
from dataclasses import dataclass

import numpy as np

from inferlet_py import Context, send

LIMIT = 3
WORDS = {"a": ["one", 2], "b": (None, True)}
OPEN = object()
NAN = float("nan")


def double(text: str) -> str:
    """Return a text twice."""
    return text * 2


def greeting(name: str) -> str:
    return f"hello {double(name)}{'!' * LIMIT}"


@dataclass
class Answer:
    text: str
    number: int = LIMIT


async def plain(name: str = "you") -> str:
    """Greet somebody.

    Args:
        name: Of who is greeted.
    """
    await send(name)
    return name


async def with_helpers(name: str) -> Answer:
    count = Counter(json.dumps(WORDS))  # the comment goes along
    await send(greeting(name))
    return Answer(name, mathematics.floor(count["o"] + 0.5))


async def generating(prompt: str) -> str:
    async with Context() as context:
        await context.fill(prompt)
        return "".join([chunk.text async for chunk in context.generate(max_tokens=2)])


async def failing() -> None:
    raise ValueError(greeting("x"))


async def recursive(depth: int) -> int:
    return 0 if depth == 0 else 1 + await recursive(depth - 1)


def even(number: int) -> bool:
    return number == 0 or odd(number - 1)


def odd(number: int) -> bool:
    return number != 0 and even(number - 1)


async def mutual(number: int) -> bool:
    return even(number)


async def needs_numpy() -> int:
    return int(np.array([1]).sum())


async def needs_file() -> str:
    return helped()


def helped() -> str:
    return str(OPEN)


async def needs_nan() -> float:
    return NAN


async def undefined() -> None:
    missing()  # type: ignore[name-defined]  # noqa: F821


def synchronous() -> None:
    pass
