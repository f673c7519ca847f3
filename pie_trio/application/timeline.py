"""Spans that inferlets mark, of all instances of a server, in bounded memory."""

from __future__ import annotations

from collections import deque

__all__ = ["Span", "Timeline"]

MAX_SPANS = 1 << 14


class Span:
    """A part of an instance's timeline.

    Attributes:
        instance: Name of the inferlet.
        begins_at: On trio's clock.
        ends_at: None while it is open.
    """

    __slots__ = ("begins_at", "ends_at", "instance", "name")

    def __init__(self, instance: str, name: str, begins_at: float) -> None:
        self.instance, self.name, self.begins_at = instance, name, begins_at
        self.ends_at: float | None = None


class Timeline:
    """The latest spans; older ones go first.

    Attributes:
        spans: In the order in which they began.
    """

    def __init__(self) -> None:
        self.spans: deque[Span] = deque(maxlen=MAX_SPANS)
