"""Tenants: what the control layer knows of an inferlet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pie_trio.control.commands import Command

__all__ = ["Tenant"]


class Tenant:
    """One inferlet as a user of one model.

    Args:
        name: Of the inferlet, unique on the server.
        age: Grows from inferlet to inferlet: the newest has the largest.
        pages: Returns the virtual pages that its handles stand for.
        on_pressure: Tells it that pages are short; False if it does not listen.
        on_evicted: Ends it, with the reason.

    Attributes:
        unfinished: Its commands that have not finished, in order.
        last_used_at: When it submitted or finished a command, on trio's clock.
        is_suspended: Its pages are in host memory; its commands wait.
        is_evicted: It was told to end, and has not done so.
        num_tokens: That were computed for it.
        num_sampled: Tokens among its results.
    """

    __slots__ = (
        "age",
        "is_evicted",
        "is_suspended",
        "last_used_at",
        "name",
        "num_sampled",
        "num_tokens",
        "on_evicted",
        "on_pressure",
        "pages",
        "unfinished",
    )

    def __init__(
        self,
        name: str,
        age: int,
        *,
        pages: Callable[[], Iterable[int]] = tuple,
        on_pressure: Callable[[], bool] = lambda: False,
        on_evicted: Callable[[Exception], None] = lambda _: None,
    ) -> None:
        self.name, self.age = name, age
        self.pages, self.on_pressure, self.on_evicted = pages, on_pressure, on_evicted
        self.unfinished: dict[Command, None] = {}
        self.last_used_at = float("-inf")
        self.is_suspended = False
        self.is_evicted = False
        self.num_tokens = self.num_sampled = 0

    def used_pages(self) -> set[int]:
        """Return its pages, and those that only its unfinished commands use by now."""
        used = set(self.pages())
        for command in self.unfinished:
            used.update(command.pages.tolist())
        return used
