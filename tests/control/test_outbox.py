from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.control.outbox import Message, Outbox
from tests.control.engines import note

if TYPE_CHECKING:
    from trio.testing import MockClock


async def take_all(outbox: Outbox) -> list[list[Message]]:
    """Take until the outbox is closed; one list for each time."""
    taken: list[list[Message]] = []
    while messages := await outbox.take():
        taken.append(messages)
    return taken


async def test_messages_come_in_order_and_all_at_once(
    autojump_clock: MockClock,
) -> None:
    outbox = Outbox(max_unread=4, max_bytes=1 << 20)
    for message in ("a", b"b", "c"):
        assert outbox.put(message)
    with trio.fail_after(30):
        assert await outbox.take() == ["a", b"b", "c"]


async def test_who_takes_waits_for_a_message(autojump_clock: MockClock) -> None:
    outbox, taken = Outbox(max_unread=4, max_bytes=1 << 20), list[Message]()

    async def take() -> None:
        taken.extend(await outbox.take())

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await wait_all_tasks_blocked()
            assert taken == []
            outbox.put("a")
    assert taken == ["a"]


async def test_late_messages_get_room_in_order_when_the_client_takes(
    autojump_clock: MockClock,
) -> None:
    outbox, calls = Outbox(max_unread=2, max_bytes=1 << 20), list[str]()
    for message in ("a", "b"):
        assert outbox.put(message)
    for message in ("c", "d", "e"):
        assert not outbox.put(message), "it is full"
        outbox.put_late(message, note(calls, message))
    with trio.fail_after(30):
        assert await outbox.take() == ["a", "b"]
        assert calls == ["c", "d"]
        assert not outbox.put("f"), "not before the late one"
        assert await outbox.take() == ["c", "d"]
        assert calls == ["c", "d", "e"]
        assert outbox.put("f")
        assert await outbox.take() == ["e", "f"]


async def test_a_late_message_can_be_taken_back_until_there_is_room(
    autojump_clock: MockClock,
) -> None:
    outbox, calls = Outbox(max_unread=1, max_bytes=1 << 20), list[str]()
    outbox.put("a")
    take_back = [outbox.put_late(m, note(calls, m)) for m in ("b", "c", "d")]
    take_back[0]()
    with trio.fail_after(30):
        assert await outbox.take() == ["a"]
        take_back[1]()  # too late
        take_back[2]()
        outbox.close()
        assert await take_all(outbox) == [["c"]]
    assert calls == ["c"]


async def test_closing_delivers_everything_and_then_ends(
    autojump_clock: MockClock,
) -> None:
    outbox, calls = Outbox(max_unread=1, max_bytes=1 << 20), list[str]()
    outbox.put("a")
    outbox.put_late("b", note(calls, "b"))
    outbox.close()
    with trio.fail_after(30):
        assert await take_all(outbox) == [["a", "b"]]
        assert await outbox.take() == []
    assert calls == [], "its sender has ended"


async def test_closing_ends_a_take_that_waits(autojump_clock: MockClock) -> None:
    outbox = Outbox(max_unread=1, max_bytes=1 << 20)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_all, outbox)
            await wait_all_tasks_blocked()
            outbox.close()


async def test_a_cancelled_take_loses_nothing(autojump_clock: MockClock) -> None:
    outbox = Outbox(max_unread=1, max_bytes=1 << 20)
    outbox.put("a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.take()
    assert scope.cancelled_caught
    with trio.fail_after(30):
        assert await outbox.take() == ["a"]
