from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.control.tickets import STOP, TicketTable
from pie_trio.errors import EngineError, LimitError, UnknownHandleError
from tests.control.engines import note

if TYPE_CHECKING:
    from trio.testing import MockClock


def make_table(wakes: list[str] | None = None) -> TicketTable:
    noted: list[str] = [] if wakes is None else wakes
    return TicketTable(max_in_flight=3, on_wake=lambda _source: noted.append("w"))


def test_a_result_is_taken_once() -> None:
    table = make_table()
    ticket = table.open()
    table.complete(ticket, "result")
    assert table.peek(ticket) == "result"
    assert table.take(ticket) == "result"
    with pytest.raises(UnknownHandleError, match=f"ticket {ticket}"):
        table.take(ticket)


def test_an_error_is_raised_when_it_is_taken_and_closes_the_ticket() -> None:
    table = make_table()
    ticket = table.open()
    table.complete(ticket, EngineError("scripted"))
    assert isinstance(table.peek(ticket), EngineError)
    with pytest.raises(EngineError, match="scripted"):
        table.take(ticket)
    assert len(table) == 0


def test_ready_tickets_are_returned_in_the_order_that_was_asked_for() -> None:
    table = make_table()
    first, second, third = (table.open() for _ in range(3))
    table.complete(first, None)
    table.complete(third, None)
    assert table.ready([third, second, first]) == [third, first]
    with pytest.raises(UnknownHandleError):
        table.ready([first, 99])


def test_no_more_tickets_are_open_than_the_limit() -> None:
    table = make_table()
    tickets = [table.open() for _ in range(3)]
    with pytest.raises(LimitError, match="3 commands are in flight"):
        table.check_room()
    table.complete(tickets[0], None)
    with pytest.raises(LimitError):
        table.check_room()  # done, but not taken
    table.take(tickets[0])
    table.check_room()


def test_cancelling_withdraws_what_has_not_finished_once() -> None:
    table, calls = make_table(), list[str]()
    ticket, done = table.open(note(calls, "a")), table.open(note(calls, "b"))
    table.complete(done, None)
    for _ in range(2):
        table.cancel(ticket)
        table.cancel(done)
    assert calls == ["a"]
    assert len(table) == 0


def test_what_arrives_for_a_cancelled_ticket_is_forgotten() -> None:
    table = make_table()
    ticket = table.open()
    assert ticket in table
    table.cancel(ticket)
    assert ticket not in table
    table.complete(ticket, "late")
    assert len(table) == 0


@pytest.mark.parametrize("is_ready", [False, True])
@pytest.mark.parametrize("end", ["cancel", "release", "cancel_all", "take"])
def test_what_a_ticket_holds_is_given_back_however_it_is_closed(
    end: str, is_ready: bool
) -> None:
    table, calls = make_table(), list[str]()
    ticket = table.open(on_close=note(calls, "closed"))
    if is_ready or end == "take":
        table.complete(ticket, None)
    assert calls == []
    for _ in range(2):
        if end == "cancel_all":
            table.cancel_all()
        elif end != "take":
            getattr(table, end)(ticket)
    if end == "take":
        table.take(ticket)
    assert calls == ["closed"]


def test_closing_one_ticket_may_make_the_next_one_ready() -> None:
    """As a receive does: the message that it was told of is for who waits after it."""
    table = make_table()
    second = 2
    first = table.open(on_close=lambda: table.complete(second, "message"))
    assert table.open() == second
    table.complete(first, "message")
    table.cancel(first)
    assert table.take(second) == "message"


def test_cancelling_all_closes_all() -> None:
    table, calls = make_table(), list[str]()
    table.open(note(calls, "a"))
    table.open()
    table.cancel_all()
    assert (calls, len(table)) == (["a"], 0)


async def test_a_wait_ends_with_the_first_ticket_that_is_ready(
    autojump_clock: MockClock,
) -> None:
    wakes: list[str] = []
    table = make_table(wakes)
    first, second, other = (table.open() for _ in range(3))
    found: list[int] = []

    async def wait() -> None:
        found.extend(await table.wait_any([first, second], None))

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            table.complete(other, None)
            assert wakes == [], "nobody waits for that one"
            table.complete(second, None)
            assert wakes == ["w"], "the batcher is told at once"
            table.complete(first, None)
    assert found == [first, second]
    assert wakes == ["w"]


async def test_a_wait_for_what_is_ready_already_ends_at_once(
    autojump_clock: MockClock,
) -> None:
    table = make_table()
    ticket = table.open()
    table.complete(ticket, None)
    with trio.fail_after(30):
        assert await table.wait_any([ticket], None) == [ticket]


async def test_a_wait_ends_at_its_deadline(autojump_clock: MockClock) -> None:
    wakes: list[str] = []
    table = make_table(wakes)
    ticket = table.open()
    with trio.fail_after(30):
        assert await table.wait_any([ticket], trio.current_time() + 2) == []
        assert trio.current_time() == 2
        assert await table.wait_any([], trio.current_time() + 1) == []
    assert wakes == []


async def test_nobody_is_woken_once_a_wait_was_cancelled(
    autojump_clock: MockClock,
) -> None:
    wakes: list[str] = []
    table = make_table(wakes)
    ticket = table.open()
    with trio.move_on_after(1):
        await table.wait_any([ticket], None)
    table.complete(ticket, "kept")
    assert wakes == []
    assert table.take(ticket) == "kept"


@pytest.mark.parametrize("deadline", [None, 100.0])
@pytest.mark.parametrize("is_waiting", [False, True])
async def test_a_stop_is_told_once_in_the_wait_or_the_next_one(
    autojump_clock: MockClock, deadline: float | None, is_waiting: bool
) -> None:
    table = make_table()
    ticket, found = table.open(), list[list[int]]()

    async def wait() -> None:
        found.append(await table.wait_any([ticket], deadline))

    async with trio.open_nursery() as nursery:
        if not is_waiting:
            table.stop()
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        if is_waiting:
            table.stop()
    assert found == [[STOP]]
    assert trio.current_time() < 1
    table.complete(ticket, None)
    await wait()
    assert found == [[STOP], [ticket]]


async def test_a_stop_comes_with_what_is_ready(autojump_clock: MockClock) -> None:
    table = make_table()
    ticket = table.open()
    table.complete(ticket, None)
    table.stop()
    assert await table.wait_any([ticket], None) == [ticket, STOP]
    assert table.poll([ticket]) == [ticket]


async def test_batches_wait_only_for_who_has_waited(autojump_clock: MockClock) -> None:
    wakes: list[str] = []
    table = make_table(wakes)
    table.stop()
    assert wakes == []
    assert table.poll([]) == [STOP]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(table.wait_any, [table.open()], None)
        await wait_all_tasks_blocked()
        table.stop()
    assert wakes == ["w"]
