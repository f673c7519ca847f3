from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from pie_trio.control.inbox import Inbox
from pie_trio.errors import LimitError
from tests.control.engines import note

if TYPE_CHECKING:
    from trio.testing import MockClock

    from pie_trio.control.outbox import Message


def receive_now(inbox: Inbox) -> Message | None:
    return inbox.receive(lambda: None).take()


async def test_messages_are_received_in_order(autojump_clock: MockClock) -> None:
    inbox = Inbox(max_unread=4, max_bytes=100)
    with trio.fail_after(30):
        for message in ("a", b"b", ""):
            assert await inbox.put(message)
    assert [receive_now(inbox) for _ in range(3)] == ["a", b"b", ""]


async def test_a_receive_waits_for_a_message(autojump_clock: MockClock) -> None:
    inbox, told = Inbox(max_unread=4, max_bytes=100), list[str]()
    receive = inbox.receive(note(told, "told"))
    assert told == []
    with trio.fail_after(30):
        await inbox.put("a")
    assert told == ["told"]
    assert receive.take() == "a"


@pytest.mark.parametrize(("max_unread", "max_bytes"), [(2, 100), (100, 2)])
async def test_a_client_waits_while_the_inbox_is_full(
    autojump_clock: MockClock, max_unread: int, max_bytes: int
) -> None:
    inbox, num_put = Inbox(max_unread=max_unread, max_bytes=max_bytes), 0

    async def put_all() -> None:
        nonlocal num_put
        for message in "abcd":
            await inbox.put(message)
            num_put += 1

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_all)
            await wait_all_tasks_blocked()
            assert num_put == 2
            assert receive_now(inbox) == "a"
            await wait_all_tasks_blocked()
            assert num_put == 3
            assert [receive_now(inbox) for _ in range(2)] == ["b", "c"]
    assert receive_now(inbox) == "d"


async def test_several_that_put_keep_their_order(autojump_clock: MockClock) -> None:
    inbox = Inbox(max_unread=1, max_bytes=10)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for message in ("a", "bbbbbbbbbb", "c"):
                nursery.start_soon(inbox.put, message)
                await wait_all_tasks_blocked()
            received = list[object]()
            for _ in range(3):
                received.append(receive_now(inbox))
                await wait_all_tasks_blocked()
    assert received == ["a", "bbbbbbbbbb", "c"]


async def test_a_cancelled_put_has_put_nothing_and_lets_the_next_go_on(
    autojump_clock: MockClock,
) -> None:
    inbox, scope = Inbox(max_unread=1, max_bytes=10), trio.CancelScope()

    async def put_cancelled() -> None:
        with scope:
            await inbox.put("b")

    with trio.fail_after(30):
        await inbox.put("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_cancelled)
            await wait_all_tasks_blocked()
            nursery.start_soon(inbox.put, "c")
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            assert receive_now(inbox) == "a"
    assert receive_now(inbox) == "c"
    assert len(inbox) == 0


async def test_a_cancelled_receive_loses_nothing(autojump_clock: MockClock) -> None:
    inbox = Inbox(max_unread=1, max_bytes=10)
    told = inbox.receive(lambda: None)
    waiting = inbox.receive(lambda: None)
    with trio.fail_after(30):
        await inbox.put("a")
    assert told.is_ready
    waiting.cancel()
    told.cancel()
    assert receive_now(inbox) == "a"


async def test_a_message_too_large_for_any_inbox_is_refused(
    autojump_clock: MockClock,
) -> None:
    inbox = Inbox(max_unread=4, max_bytes=3)
    with pytest.raises(LimitError, match="4 bytes"):
        await inbox.put("\N{EURO SIGN}x")
    assert len(inbox) == 0


async def test_after_the_end_of_input_the_rest_is_received_and_then_none(
    autojump_clock: MockClock,
) -> None:
    inbox = Inbox(max_unread=1, max_bytes=10)
    with trio.fail_after(30):
        await inbox.put("a")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inbox.put, "late")
            await wait_all_tasks_blocked()
            inbox.end()
        assert not await inbox.put("b")
    assert inbox.has_ended
    assert [receive_now(inbox) for _ in range(3)] == ["a", None, None]


async def test_the_end_of_input_wakes_all_who_wait(autojump_clock: MockClock) -> None:
    inbox, told = Inbox(max_unread=1, max_bytes=10), list[str]()
    receives = [inbox.receive(note(told, name)) for name in "ab"]
    inbox.end()
    assert [receive.take() for receive in receives] == [None, None]
    assert told == ["a", "b"]


async def test_closing_drops_everything_and_tells_both_sides(
    autojump_clock: MockClock,
) -> None:
    inbox, put = Inbox(max_unread=1, max_bytes=10), list[bool]()

    async def put_late() -> None:
        put.append(await inbox.put("b"))

    with trio.fail_after(30):
        await inbox.put("a")
        told = inbox.receive(lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put_late)
            nursery.start_soon(put_late)
            await wait_all_tasks_blocked()
            inbox.close()
    assert put == [False, False]
    assert told.take() is None
    assert len(inbox) == 0


@given(
    st.lists(st.text(max_size=4), max_size=12),
    st.integers(1, 4),
    st.integers(16, 32),
)
def test_an_inbox_never_holds_more_than_it_may_and_loses_nothing(
    messages: list[str], max_unread: int, max_bytes: int
) -> None:
    received: list[Message] = []

    async def main() -> None:
        inbox = Inbox(max_unread=max_unread, max_bytes=max_bytes)

        async def put_all() -> None:
            for message in messages:
                await inbox.put(message)
            inbox.end()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put_all)
                while True:
                    assert len(inbox) <= max_unread
                    is_told = trio.Event()
                    receive = inbox.receive(is_told.set)
                    await is_told.wait()
                    message = receive.take()
                    if message is None:
                        return
                    received.append(message)

    trio.run(main)
    assert received == messages
