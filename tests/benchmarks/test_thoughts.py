"""Deliberations of clients and of inferlets are the same work."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks._completions import Said
from benchmarks._thoughts import THOUGHTS, Graph, Recursion, Skeleton, Tree
from benchmarks.harness import make_program, open_bare_launcher
from benchmarks.serving import PROGRAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

SHARED, OWN, TOKENS = [7] * 20, [8] * 5, 6
MADE: dict[str, Tree | Recursion | Graph | Skeleton] = {
    "tree": Tree(SHARED, OWN, TOKENS, step=[1], judge=[2]),
    "recursion": Recursion(SHARED, OWN, TOKENS),
    "graph": Graph(SHARED, OWN, TOKENS),
    "skeleton": Skeleton(SHARED, OWN, TOKENS, points=[[1], [2], [3]]),
}


class FakeServer:
    """Says as many tokens as it is asked for; the later it is asked, the likelier."""

    def __init__(self) -> None:
        self.prompts: list[list[int]] = []

    async def complete(
        self, prompt: Sequence[int], num_tokens: int, *, count: int = 1, **_: Any
    ) -> list[Said]:
        await asyncio.sleep(0)
        self.prompts.append(list(prompt))
        value = len(self.prompts) / 1000
        return [Said([100 + n] * num_tokens, value) for n in range(count)]


@pytest.mark.parametrize("name", THOUGHTS)
def test_a_client_generates_what_is_expected(name: str) -> None:
    made, server = MADE[name], FakeServer()
    assert asyncio.run(made.run(server)) == made.expected
    assert all(prompt[:20] == SHARED for prompt in server.prompts)


@pytest.mark.parametrize("name", THOUGHTS)
async def test_an_inferlet_generates_as_much(name: str) -> None:
    made = MADE[name]
    program = make_program((PROGRAMS / f"{name}.py").read_text())
    async with open_bare_launcher() as launcher:
        instance = launcher.prepare(program, made.arguments())
        assert json.loads(await instance.run()) == made.expected


def test_a_tree_goes_on_with_the_likeliest() -> None:
    server = FakeServer()
    asyncio.run(Tree(SHARED, OWN, TOKENS, step=[1], judge=[2], depth=2).run(server))
    judged = [prompt for prompt in server.prompts if prompt[-1] == 2]
    assert len(judged) == 2 + 4
    grown = [prompt for prompt in server.prompts if prompt[-1] == 1]
    assert grown[1][:-1] == judged[1][:-1], "it was judged later"


def test_numbers_of_thoughts_are_the_papers() -> None:
    assert {name: made.expected for name, made in MADE.items()} == {
        "tree": (2 + 4 + 4) * (TOKENS + 1),
        "recursion": (2 + 2 * (2 + 2 * 1)) * TOKENS,
        "graph": 115 + 7 * TOKENS,
        "skeleton": 4 * TOKENS,
    }
