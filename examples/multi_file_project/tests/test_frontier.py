"""The frontier alone: it needs neither a model nor a server."""

from likeliest.frontier import Frontier, Node


def test_the_likeliest_come_first() -> None:
    frontier = Frontier(capacity=9)
    for logprob in (-3.0, -1.0, -2.0):
        frontier.push(Node((1,), logprob))
    assert [node.logprob for node in frontier.pop(2)] == [-1.0, -2.0]
    assert len(frontier) == 1


def test_the_least_likely_are_dropped_and_the_best_of_them_is_noted() -> None:
    frontier = Frontier(capacity=2)
    for logprob in (-3.0, -1.0, -2.0, -4.0):
        frontier.push(Node((1,), logprob))
    assert [node.logprob for node in frontier.pop(9)] == [-1.0, -2.0]
    assert frontier.dropped == -3.0
