"""The search: several of the best nodes are looked into at once, and share a batch."""

import math
from dataclasses import dataclass

from inferlet_py import Context, open_nursery
from likeliest.frontier import Frontier, Node


@dataclass(frozen=True)
class Found:
    """The end of a search.

    Attributes:
        node: The likeliest continuation.
        num_expanded: Nodes that were looked into.
        is_certain: No continuation of these tokens is likelier.
    """

    node: Node
    num_expanded: int
    is_certain: bool


class Search:
    """A best-first search behind a context."""

    def __init__(self, root: Context, *, branches: int, capacity: int) -> None:
        self._contexts: dict[tuple[int, ...], Context] = {(): root}
        self._branches = branches
        self._frontier = Frontier(capacity)
        self._eos = root.model.info.eos_tokens
        self.num_expanded = 0

    async def run(self, length: int, width: int) -> Found:
        """Return the likeliest continuation of a length, or a shorter one that ends the text."""
        await self._expand(Node())
        while True:
            best = self._frontier.pop(width)
            # A continuation is never likelier than its beginning: the first that is whole wins.
            if self._is_whole(best[0], length):
                is_certain = self._frontier.dropped <= best[0].logprob
                return Found(best[0], self.num_expanded, is_certain)
            async with open_nursery() as nursery:
                for node in best:
                    if self._is_whole(node, length):
                        self._frontier.push(node)
                    else:
                        nursery.start_soon(self._expand, node)

    def close(self) -> None:
        """Give all pages back."""
        for context in self._contexts.values():
            context.close()

    def _is_whole(self, node: Node, length: int) -> bool:
        return len(node.token_ids) == length or node.token_ids[-1] in self._eos

    async def _expand(self, node: Node) -> None:
        context = self._contexts[()]
        if node.token_ids:
            context = self._contexts[node.token_ids[:-1]].fork()
            self._contexts[node.token_ids] = context
        self.num_expanded += 1
        dist = await context.forward(node.token_ids[-1:], top=self._branches)
        for token, prob in dist:
            if prob > 0.0:
                logprob = node.logprob + math.log(prob)
                self._frontier.push(Node((*node.token_ids, token), logprob))
