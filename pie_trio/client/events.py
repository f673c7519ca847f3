"""What an instance tells its clients, as objects."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pie_trio.client.errors import failure_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.client.errors import InstanceFailedError

__all__ = [
    "End",
    "Event",
    "Failure",
    "Log",
    "Lost",
    "Message",
    "Outcome",
    "Receiving",
    "Result",
    "Started",
    "make_event",
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that an instance tells. Kinds that this client does not know are of this class.

    Attributes:
        kind: The server's name of it.
        number: Counted from 1 in each instance; 0 where it has none.
        data: As the server sent it.
    """

    kind: str
    number: int
    data: Mapping[str, Any]


class Started(Event):
    """The instance exists."""

    __slots__ = ()

    @property
    def instance_id(self) -> str:
        """Its id."""
        return str(self.data["id"])

    @property
    def program(self) -> str:
        """Name of its program."""
        return str(self.data["program"])


class Receiving(Event):
    """It waits for its first message."""

    __slots__ = ()


class Message(Event):
    """It has sent this."""

    __slots__ = ()

    @property
    def content(self) -> str | bytes:
        """What it has sent."""
        if "text" in self.data:
            return str(self.data["text"])
        binary = self.data["binary"]
        return binary if isinstance(binary, bytes) else base64.b64decode(binary)


class Log(Event):
    """A line that it has logged or printed."""

    __slots__ = ()

    @property
    def source(self) -> str:
        """``stdout``, ``stderr``, or a level from ``debug`` to ``error``."""
        return str(self.data["source"])

    @property
    def text(self) -> str:
        """The line."""
        return str(self.data["text"])


class Result(Event):
    """It has returned."""

    __slots__ = ()

    @property
    def value(self) -> Any:
        """What it has returned: what JSON can carry."""
        return self.data["value"]


class Failure(Event):
    """It has failed, or was ended."""

    __slots__ = ()

    @property
    def error(self) -> InstanceFailedError:
        """Why."""
        return failure_of(self.data)


class End(Event):
    """It has ended; nothing comes after this."""

    __slots__ = ()

    @property
    def state(self) -> str:
        """``succeeded``, ``failed`` or ``cancelled``."""
        return str(self.data["state"])


class Lost(Event):
    """Events before the next one were read too late, and are not kept any more."""

    __slots__ = ()

    @property
    def num_events(self) -> int:
        """How many."""
        return int(self.data["events"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an instance has ended.

    Attributes:
        instance_id: Its id.
        state: ``succeeded``, ``failed`` or ``cancelled``.
        value: What it has returned; None if it has not.
        error: Why it has failed; None if it has not.
        seconds: From its launch to its end.
        tokens_computed: Tokens that went through the model.
        tokens_sampled: Tokens that the model has made.
    """

    instance_id: str
    state: str
    value: Any
    error: InstanceFailedError | None
    seconds: float
    tokens_computed: int
    tokens_sampled: int


_CLASSES: dict[str, type[Event]] = {
    "started": Started,
    "receiving": Receiving,
    "message": Message,
    "log": Log,
    "result": Result,
    "error": Failure,
    "end": End,
    "lost": Lost,
}


def make_event(kind: str, number: int, data: Mapping[str, Any]) -> Event:
    """Return an event as an object of its class."""
    return _CLASSES.get(kind, Event)(kind, number, data)
