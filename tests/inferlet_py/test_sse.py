"""Server-sent events in any pieces."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from inferlet_py import EventReader, ServerSentEvent

STREAM = (
    "\ufeffdata: one\n\n"
    ": a comment\r\n"
    "event: add\r\ndata: two\r\ndata:  three\r\nid: 7\r\n\r\n"
    "data\rretry: 250\rretry: 1x\r\r"
    "event: nothing\n\n"
    "id: \0\nfield: x\ndata:é\n\n"
    "data: cut short"
).encode()

EVENTS = [
    ServerSentEvent("one"),
    ServerSentEvent("two\n three", "add", "7"),
    ServerSentEvent("", "message", "7"),
    ServerSentEvent("é", "message", "7"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_in_any_pieces(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    reader = EventReader()
    found = [
        event
        for start, end in pairwise(places)
        for event in reader.add(STREAM[start:end])
    ]
    assert found == EVENTS
    assert reader.retry_milliseconds == 250


def test_bytes_that_are_no_text_are_replaced() -> None:
    assert list(EventReader().add(b"data: \xff\n\n")) == [ServerSentEvent("\ufffd")]
