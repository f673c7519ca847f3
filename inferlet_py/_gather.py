"""Several branches at once, for what they return."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from inferlet_py._nursery import open_nursery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

__all__ = ["gather"]

T = TypeVar("T")


async def gather(branches: Iterable[Awaitable[T]]) -> list[T]:
    """Run branches at the same time, and return what they return, in their order.

    As all branches of a nursery they submit before any waits, and so share batches. If one
    fails the others are cancelled.

    Args:
        branches: As ``[first.forward(), second.forward()]``.

    Raises:
        ExceptionGroup: Of what they raised.
    """
    given = list(branches)
    results: dict[int, T] = {}

    async def run(index: int, branch: Awaitable[T]) -> None:
        results[index] = await branch

    async with open_nursery() as nursery:
        for index, branch in enumerate(given):
            nursery.start_soon(run, index, branch)
    return [results[index] for index in range(len(results))]
