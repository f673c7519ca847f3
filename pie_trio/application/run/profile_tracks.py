"""What a profile knows: which frames were open when, in each thread; as speedscope reads it.

See speedscope's "Importing from custom sources": a profile of the type ``evented``.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["MAX_EVENTS", "Track", "Tracks"]

MAX_EVENTS = 4_000_000
"""Of all tracks; a minute of a busy loop, and some 300 MB."""

SCHEMA = "https://www.speedscope.app/file-format-schema.json"


@dataclass(slots=True)
class Track:
    """Frames of one thread.

    Attributes:
        name: For the reader.
        events: When a frame was opened, with its number, or closed, with ``~number``.
        opened: Frames that are open, outermost first.
    """

    name: str
    events: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    opened: list[int] = field(default_factory=list[int])


class Tracks:
    """Frames of some threads, from now until :meth:`end`.

    Args:
        clock: Seconds.
        max_events: After as many no frame is opened any more.

    Attributes:
        is_cut: Whether frames were left out.
    """

    def __init__(
        self, clock: Callable[[], float], *, max_events: int = MAX_EVENTS
    ) -> None:
        self._clock = clock
        self._numbers: dict[str, int] = {}
        self._tracks: list[Track] = []
        self._left = max_events
        self.is_cut = False
        self._began = self._ended = clock()

    @property
    def seconds(self) -> float:
        """From the beginning to the end."""
        return self._ended - self._began

    def add(self, name: str) -> Track:
        """Return a new track."""
        track = Track(name)
        self._tracks.append(track)
        return track

    def open(self, track: Track, frame: str) -> bool:
        """Open a frame inside of those that are open; return False if there is no room."""
        if self._left <= 0:
            self.is_cut = True
            return False
        self._left -= 2  # its end has to fit too
        number = self._numbers.setdefault(frame, len(self._numbers))
        track.opened.append(number)
        track.events.append((self._clock(), number))
        return True

    def close(self, track: Track) -> None:
        """Close the innermost frame that is open."""
        track.events.append((self._clock(), ~track.opened.pop()))

    def end(self) -> None:
        """Close all that is open."""
        for track in self._tracks:
            while track.opened:
                self.close(track)
        self._ended = self._clock()

    def own_seconds(self, track: Track) -> dict[str, float]:
        """Return the time of each frame without those inside of it; once it has ended."""
        names = list(self._numbers)
        found: defaultdict[str, float] = defaultdict(float)
        opened: list[str] = []
        last = self._began
        for at, number in track.events:
            if opened:
                found[opened[-1]] += at - last
            last = at
            if number >= 0:
                opened.append(names[number])
            else:
                opened.pop()
        return dict(found)

    def speedscope(self, name: str) -> dict[str, Any]:
        """Return the object that is written to a file.

        Args:
            name: Of the profile.
        """
        frames = [{"name": frame} for frame in self._numbers]
        return {
            "$schema": SCHEMA,
            "exporter": "pie run --profile",
            "name": name,
            "activeProfileIndex": 0,
            "shared": {"frames": frames},
            "profiles": [self._profile(track) for track in self._tracks],
        }

    def _profile(self, track: Track) -> dict[str, Any]:
        return {
            "type": "evented",
            "name": track.name,
            "unit": "microseconds",
            "startValue": 0,
            "endValue": self._microseconds(self._ended),
            "events": list(self._events(track.events)),
        }

    def _events(self, events: Sequence[tuple[float, int]]) -> Iterator[dict[str, Any]]:
        for at, number in events:
            kind, frame = ("O", number) if number >= 0 else ("C", ~number)
            yield {"type": kind, "frame": frame, "at": self._microseconds(at)}

    def _microseconds(self, at: float) -> float:
        return round((at - self._began) * 1e6, 1)
