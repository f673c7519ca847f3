"""Server-sent events, as they come: see https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EventReader", "ServerSentEvent"]

_LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class ServerSentEvent:
    """One event.

    Attributes:
        data: Its lines, joined.
        event: Its name; ``message`` if it has none.
        event_id: The last id of the stream up to it.
    """

    data: str
    event: str = "message"
    event_id: str = ""


class EventReader:
    """Reads events out of the bytes of a response, in whatever pieces they come.

    Attributes:
        retry_milliseconds: How long the server wants clients to wait before they come back.
    """

    def __init__(self) -> None:
        self.retry_milliseconds: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._text = ""
        self._is_first = True  # a byte-order mark may come
        self._data: list[str] = []
        self._event = self._event_id = ""

    def add(self, data: bytes) -> Iterator[ServerSentEvent]:
        """Return the events that are complete by these bytes."""
        self._text += self._decoder.decode(data)
        if self._is_first and self._text:
            self._text, self._is_first = self._text.removeprefix("\ufeff"), False
        return iter(self._take())

    def _take(self) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        at = 0
        while match := _LINE_END.search(self._text, at):
            if match[0] == "\r" and match.end() == len(self._text):
                break  # a line feed may follow
            event = self._read_line(self._text[at : match.start()])
            at = match.end()
            if event is not None:
                events.append(event)
        self._text = self._text[at:]
        return events

    def _read_line(self, line: str) -> ServerSentEvent | None:
        if not line:
            return self._end_event()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._event_id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self.retry_milliseconds = int(value)
        return None

    def _end_event(self) -> ServerSentEvent | None:
        data, self._data = self._data, []
        name, self._event = self._event, ""
        if not data:
            return None
        return ServerSentEvent("\n".join(data), name or "message", self._event_id)
