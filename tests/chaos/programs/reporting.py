"""How the inferlets of the simulation tell what they have seen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from inferlet_py import Context, send

if TYPE_CHECKING:
    import random


class Reporter:
    """Sends numbered reports; whoever reads them sees whether one is missing.

    Attributes:
        count: Reports that were sent.
    """

    def __init__(self) -> None:
        self.count = 0

    async def __call__(self, kind: str, *values: object) -> None:
        await send(json.dumps([self.count, kind, *values]))
        self.count += 1


def make_text(plan: random.Random, most: int = 10) -> str:
    """Return a text of at least one character."""
    return "".join(plan.choices("abcdefgh", k=plan.randint(1, most)))


async def generate(
    context: Context, count: int, *, stepwise: bool = False
) -> list[int]:
    """Return tokens that the model gives, whichever they are."""
    generation = context.generate(max_tokens=count, stop_tokens=[], stepwise=stepwise)
    return await generation.tokens()
