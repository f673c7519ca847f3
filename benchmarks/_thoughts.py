"""Trees, recursions, graphs and skeletons of thought as clients write them; see ``programs`` for ours.

All that can run at once does, each fork is a prompt that begins as others do, and thoughts that
have their parent in common are asked for by one request (``n``).
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks._completions import Completes

__all__ = ["THOUGHTS", "Graph", "Recursion", "Skeleton", "Thought", "Tree"]


@dataclass(frozen=True, slots=True)
class Thought:
    """What a deliberation begins with, and the length of its thoughts.

    Attributes:
        shared: What all begin with.
        own: What this one is asked.
        tokens: Of each thought.
    """

    shared: Sequence[int]
    own: Sequence[int]
    tokens: int

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the program."""
        return asdict(self)

    @property
    def prompt(self) -> list[int]:
        """What the first request sends."""
        return [*self.shared, *self.own]


@dataclass(frozen=True, slots=True)
class Tree(Thought):
    """See ``programs/tree.py``."""

    step: Sequence[int]
    judge: Sequence[int]
    depth: int = 3
    branches: int = 2
    keep: int = 2

    @property
    def expected(self) -> int:
        """Tokens that have to be generated."""
        thoughts, parents = 0, 1
        for _ in range(self.depth):
            thoughts += parents * self.branches
            parents = min(parents * self.branches, self.keep)
        return thoughts * (self.tokens + 1)

    async def run(self, server: Completes) -> int:
        """Return how many tokens were generated."""
        count = 0
        level: list[tuple[float, list[int]]]

        async def judge(text: list[int]) -> None:
            nonlocal count
            (verdict,) = await server.complete([*text, *self.judge], 1, values=True)
            count += 1
            level.append((verdict.value, text))

        async def grow(parent: list[int]) -> None:
            nonlocal count
            begun = [*parent, *self.step]
            found = await server.complete(
                begun, self.tokens, count=self.branches, temperature=1.0
            )
            count += sum(len(said.tokens) for said in found)
            await asyncio.gather(*(judge([*begun, *said.tokens]) for said in found))

        kept = [self.prompt]
        for _ in range(self.depth):
            level = []
            await asyncio.gather(*(grow(parent) for parent in kept))
            level.sort(key=lambda thought: -thought[0])
            kept = [text for _, text in level[: self.keep]]
        return count


@dataclass(frozen=True, slots=True)
class Recursion(Thought):
    """See ``programs/recursion.py``."""

    depth: int = 2

    @property
    def expected(self) -> int:
        """Tokens that have to be generated."""
        asked = 1
        for _ in range(self.depth):
            asked = 2 + 2 * asked
        return asked * self.tokens

    async def run(self, server: Completes) -> int:
        """Return how many tokens were generated."""
        count = 0

        async def ask(problem: Sequence[int]) -> list[int]:
            nonlocal count
            prompt = [*self.shared, *problem]
            (said,) = await server.complete(prompt, self.tokens)
            count += len(said.tokens)
            return said.tokens

        async def solve(problem: Sequence[int], depth: int) -> list[int]:
            said = await ask(problem)
            if depth == 0:
                return said
            middle = len(said) // 2
            halves = [said[:middle], said[middle:]]
            first, second = await asyncio.gather(
                *(solve(half, depth - 1) for half in halves)
            )
            return await ask([*first, *second])

        await solve(self.own, self.depth)
        return count


@dataclass(frozen=True, slots=True)
class Graph(Thought):
    """See ``programs/graph.py``. The lengths of the proposals are the paper's."""

    proposals: Sequence[int] = (4, 32, 16, 8, 4, 16, 3, 32)

    @property
    def expected(self) -> int:
        """Tokens that have to be generated."""
        return sum(self.proposals) + (len(self.proposals) - 1) * self.tokens

    async def run(self, server: Completes) -> int:
        """Return how many tokens were generated."""
        count = 0
        ready: list[list[int]] = []

        async def think(given: Sequence[int], length: int) -> None:
            nonlocal count
            (said,) = await server.complete([*self.prompt, *given], length)
            count += len(said.tokens)
            if ready:
                await think([*ready.pop(), *said.tokens], self.tokens)
            else:
                ready.append(said.tokens)

        await asyncio.gather(*(think([], length) for length in self.proposals))
        return count


@dataclass(frozen=True, slots=True)
class Skeleton(Thought):
    """See ``programs/skeleton.py``."""

    points: Sequence[Sequence[int]]

    @property
    def expected(self) -> int:
        """Tokens that have to be generated."""
        return (1 + len(self.points)) * self.tokens

    async def run(self, server: Completes) -> int:
        """Return how many tokens were generated."""
        (outline,) = await server.complete(self.prompt, self.tokens)
        begun = [*self.prompt, *outline.tokens]
        expanded = await asyncio.gather(
            *(server.complete([*begun, *point], self.tokens) for point in self.points)
        )
        return len(outline.tokens) + sum(len(said.tokens) for (said,) in expanded)


THOUGHTS = {"tree": Tree, "recursion": Recursion, "graph": Graph, "skeleton": Skeleton}
