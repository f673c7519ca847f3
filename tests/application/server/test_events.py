"""The events of an instance: numbered, bounded, and whole for the client that holds them."""

from __future__ import annotations

import json

import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.server.envelopes import encode_event as encode_frame
from pie_trio.application.server.events import (
    EVENT_OVERHEAD_BYTES,
    Event,
    EventLog,
    event_fields,
)
from pie_trio.application.server.streams import encode_event

BIG = 1 << 30
ANY_TEXT = st.one_of(st.text(), st.sampled_from(["\ud800", 'a\udc00"', "\\", ""]))
"""Halves of surrogate pairs too."""


async def read_all(log: EventLog, after: int = 0) -> tuple[list[int], int]:
    """Return the numbers of the events of a closed log, and how many were lost."""
    numbers, lost = list[int](), 0
    while batch := await log.read(after):
        numbers += [event.number for event in batch.events]
        lost += batch.num_lost
        after = numbers[-1]
    return numbers, lost


async def test_the_oldest_go_first_where_nobody_holds_the_log() -> None:
    log = EventLog(max_events=3, max_bytes=BIG)
    for text in "abcde":
        log.append("message", text)
    log.close()
    assert await read_all(log) == ([3, 4, 5], 2)
    assert await read_all(log, after=3) == ([4, 5], 0)
    assert await read_all(log, after=9) == ([], 0)


async def test_bytes_are_bounded_too() -> None:
    log = EventLog(max_events=100, max_bytes=10 * EVENT_OVERHEAD_BYTES)
    for _ in range(50):
        log.append("log", {})
    assert log.num_bytes <= 10 * EVENT_OVERHEAD_BYTES
    log.append("message", "x" * 10_000)  # one is kept, however large
    log.close()
    assert await read_all(log) == ([51], 50)


async def test_a_holder_is_waited_for() -> None:
    log = EventLog(max_events=2, max_bytes=BIG)
    log.hold(0)
    for text in "ab":
        log.append("message", text)
    assert log.is_full
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.wait_room)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        log.hold(1)
    log.append("message", "c")
    assert log.is_full
    log.let_go()
    assert not log.is_full


async def test_what_the_holder_has_not_taken_is_kept_however_large() -> None:
    log = EventLog(max_events=2, max_bytes=100)
    log.hold(0)
    for _ in range(5):  # who appends has looked for room before, and may have many
        log.append("message", "x" * 1000)
    log.close()
    assert await read_all(log) == ([1, 2, 3, 4, 5], 0)
    log.hold(4)
    assert await read_all(log) == ([5], 4)


async def test_everybody_who_waits_is_woken() -> None:
    log = EventLog(max_events=9, max_bytes=BIG)
    found = list[str | bytes | object]()

    async def read() -> None:
        batch = await log.read(0)
        assert batch is not None
        found.append(batch.events[0].data)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
            await wait_all_tasks_blocked()
            log.append("message", "a")
    assert found == ["a"] * 3


async def test_a_batch_is_as_large_as_one_write() -> None:
    log = EventLog(max_events=1000, max_bytes=BIG)
    for _ in range(100):
        log.append("message", b"x" * 10_000)
    batch = await log.read(0)
    assert batch is not None
    assert len(batch.events) == 6


@given(
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 3))),
    st.integers(1, 5),
    st.integers(1, 3000),
)
def test_the_holder_gets_everything_in_order_and_memory_is_bounded(
    steps: list[tuple[int, int]], max_events: int, max_bytes: int
) -> None:
    log = EventLog(max_events=max_events, max_bytes=max_bytes)
    log.hold(0)
    taken = list[int]()
    appended = 0
    for size, reads in steps:
        if not log.is_full:
            log.append("message", "x" * size)
            appended += 1
        for _ in range(reads):
            after = taken[-1] if taken else 0
            log.hold(after)
            if log.last_number > after:
                batch = trio.run(log.read, after)
                assert batch is not None
                assert batch.num_lost == 0
                taken += [event.number for event in batch.events]
        most = 2 * (max_bytes + 2000 + EVENT_OVERHEAD_BYTES)
        assert log.num_bytes <= most
    log.close()
    rest, lost = trio.run(read_all, log, taken[-1] if taken else 0)
    assert lost == 0
    assert taken + rest == list(range(1, appended + 1))


async def test_a_look_finds_what_is_there_and_waits_for_nothing() -> None:
    log = EventLog(max_events=9, max_bytes=BIG)
    assert log.take(0) is None
    log.append("message", "a")
    log.append("message", "b")
    batch = log.take(0)
    assert batch is not None
    assert [event.data for event in batch.events] == ["a", "b"]
    assert log.take(1) is not None
    assert log.take(2) is None
    with trio.fail_after(30):
        await log.wait(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.wait, 2)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            log.append("message", "c")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.wait, 3)
            await wait_all_tasks_blocked()  # it sleeps, though it was woken before
            assert nursery.child_tasks
            log.close()
    assert log.take(3) is None


async def test_a_holder_that_looks_again_still_holds() -> None:
    log = EventLog(max_events=2, max_bytes=BIG)
    log.hold(0)
    log.append("message", "a")
    log.hold(0)
    log.append("message", "b")
    assert log.is_full
    log.hold(0)
    assert log.is_full
    log.let_go()
    log.hold(0)
    assert log.is_full


async def test_what_the_holder_has_left_fills_the_log() -> None:
    log = EventLog(max_events=99, max_bytes=200)
    log.hold(0)
    for _ in range(3):
        log.append("message", "x" * 100)
    log.hold(1)
    assert log.is_full
    log.hold(2)
    assert not log.is_full


@given(st.one_of(ANY_TEXT, st.binary(), st.dictionaries(ANY_TEXT, ANY_TEXT)))
def test_an_event_on_its_way_is_what_json_makes_of_it(
    data: str | bytes | dict[str, str],
) -> None:
    event = Event(7, "message" if isinstance(data, str | bytes) else "log", data, 0)
    told = json.dumps(event_fields(event), ensure_ascii=False)
    assert encode_event(event) == f"id: 7\nevent: {event.kind}\ndata: {told}\n\n"
    if not isinstance(data, bytes):
        fields = {"type": event.kind, "instance": "i", "number": 7}
        frame = json.dumps(fields | event_fields(event), ensure_ascii=False)
        expected = frame.encode("utf-8", "replace").decode()
        assert encode_frame("i", event) == expected
