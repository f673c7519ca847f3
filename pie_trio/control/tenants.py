"""Tenants: what the control layer knows of an inferlet."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.control.commands import Command
    from pie_trio.control.totals import Totals

__all__ = ["Tenant"]


class Tenant:
    """One inferlet as a user of one model.

    Args:
        name: Of the inferlet, unique on the server.
        age: Grows from inferlet to inferlet: the newest has the largest.
        pages: Returns the virtual pages that its handles stand for.
        on_pressure: Tells it that pages are short; False if it does not listen.
        on_evicted: Ends it, with the reason.
        totals: Counts its ``tokens``, if anybody does.
        on_read: Gets each of its pages with what it holds, ``[page_bytes]`` uint8, where it is
            suspended: it only reads them. None for an inferlet, whose pages are moved.

    Attributes:
        unfinished: Its commands that have not finished, in order.
        last_used_at: When it submitted or finished a command, on trio's clock.
        is_suspended: Its pages are in host memory; its commands wait.
        is_evicted: It was told to end, and has not done so.
        num_tokens: That were computed for it.
        num_sampled: Tokens among its results.
        first_sampled_at: When the step of the first of these ended; None before.
        num_steps: Steps of the device that had work of it.
        last_step: The latest of them.
    """

    __slots__ = (
        "age",
        "first_sampled_at",
        "is_evicted",
        "is_suspended",
        "last_step",
        "last_used_at",
        "name",
        "num_sampled",
        "num_steps",
        "num_tokens",
        "on_evicted",
        "on_pressure",
        "on_read",
        "pages",
        "totals",
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
        totals: Totals | None = None,
        on_read: Callable[[int, NDArray[np.uint8]], None] | None = None,
    ) -> None:
        self.name, self.age = name, age
        self.pages, self.on_pressure, self.on_evicted = pages, on_pressure, on_evicted
        self.totals, self.on_read = totals, on_read
        self.unfinished: dict[Command, None] = {}
        self.last_used_at = float("-inf")
        self.is_suspended = False
        self.is_evicted = False
        self.num_tokens = self.num_sampled = 0
        self.first_sampled_at: float | None = None
        self.num_steps = self.last_step = 0

    def note_step(self, number: int) -> None:
        """Note that it had work in a step; again does nothing."""
        if number != self.last_step:
            self.last_step = number
            self.num_steps += 1

    def used_pages(self) -> set[int]:
        """Return its pages, and those that only its unfinished commands use by now."""
        used = set(self.pages())
        for command in self.unfinished:
            used.update(command.pages.tolist())
        return used
