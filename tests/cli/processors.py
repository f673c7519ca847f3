"""Grammars, penalties and samplers on pie-tiny; the test runs it in both modes."""

from __future__ import annotations

import json
from dataclasses import dataclass

from inferlet_py import (
    Context,
    Grammar,
    Greedy,
    Processor,
    Sampler,
    inferlet,
    open_nursery,
)

PROMPT = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n"
SPACES = " \n\r\t"


@dataclass
class Person:
    """What the model shall describe."""

    name: str
    age: int
    is_big: bool


@inferlet
async def main(count: int = 4) -> dict[str, object]:
    """Generate under constraints, and return what came."""
    persons = [await describe(seed) for seed in range(count)]
    alone = [await draw(seed) for seed in range(count)]
    together = [""] * count

    async def draw_into(seed: int) -> None:
        together[seed] = await draw(seed)

    async with open_nursery() as nursery:
        for seed in range(count):
            nursery.start_soon(draw_into, seed)
    return {
        "persons": persons,
        "alone": alone,
        "together": together,
        "plain": await go_on(None),
        "varied": await go_on(1.5),
    }


async def describe(seed: int) -> object:
    """Return JSON that fits a type: without spaces, of which it may have any number."""
    async with Context() as context:
        await context.fill(PROMPT)
        model = context.model
        spaces = [
            i for i, text in enumerate(model.vocabulary()) if text and not text.strip()
        ]
        async with await Processor.create(
            grammar=Grammar.json_schema(Person),
            bias=dict.fromkeys(spaces, float("-inf")),
        ) as processor:
            generation = context.generate(
                processor=processor,
                sampler=Sampler(temperature=0.7, seed=seed, typical_p=0.9),
                max_tokens=400,
            )
            text = await generation.text()
    value = json.loads(text) if generation.finish_reason == "stop" else None
    return {"reason": generation.finish_reason, "value": value, "text": text}


async def draw(seed: int) -> str:
    """Return a text of a form, with a seed."""
    async with Context() as context:
        await context.fill(PROMPT)
        return await context.generate(
            regex="[A-Z][a-z]{2,8}( [a-z]{1,8}){6}[.]", sampler=Sampler(seed=seed)
        ).text()


async def go_on(repetition_penalty: float | None) -> list[int]:
    """Return greedy tokens, with a penalty for those that came already."""
    async with Context() as context:
        await context.fill("one one one one one")
        if repetition_penalty is None:
            return await context.generate(max_tokens=30, sampler=Greedy()).tokens()
        async with await Processor.create(
            repetition_penalty=repetition_penalty, prompt=context.token_ids
        ) as processor:
            return await context.generate(
                max_tokens=30, sampler=Greedy(), processor=processor
            ).tokens()
