"""What a search has found and not yet looked into, the likeliest first."""

from dataclasses import dataclass

from sortedcontainers import SortedKeyList  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Node:
    """A continuation: its tokens, and the logarithm of its probability."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0


class Frontier:
    """A sorted list, since it loses nodes at both ends: the best are taken, the worst dropped.

    Args:
        capacity: Most nodes to keep.

    Attributes:
        dropped: Of the nodes that were dropped, the logarithm of the largest probability.
    """

    def __init__(self, capacity: int) -> None:
        self._nodes = SortedKeyList(key=lambda node: -node.logprob)
        self._capacity = capacity
        self.dropped = float("-inf")

    def __len__(self) -> int:
        return len(self._nodes)

    def push(self, node: Node) -> None:
        """Add a node; if there are too many then, the least likely goes."""
        self._nodes.add(node)
        if len(self._nodes) > self._capacity:
            self.dropped = max(self.dropped, self._nodes.pop().logprob)

    def pop(self, count: int) -> list[Node]:
        """Take the likeliest nodes."""
        return [self._nodes.pop(0) for _ in range(min(count, len(self._nodes)))]
