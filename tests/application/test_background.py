"""Tasks in the background: whose they are, how they end, and what is opened once."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.background import Lazy, TaskGroup, open_background
from pie_trio.errors import StoreError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock


async def test_a_group_cancels_its_own_tasks_and_waits_for_them(
    autojump_clock: MockClock,
) -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(name)

    async with open_background() as background:
        first, second = TaskGroup(background), TaskGroup(background)
        first.start(lambda: work("first"))
        first.start(lambda: work("alone")).cancel()
        second.start(lambda: work("second"))
        await wait_all_tasks_blocked()
        assert ended == ["alone"]
        await first.close()
        assert ended == ["alone", "first"]
        assert (len(first), len(second)) == (0, 1)
    assert ended == ["alone", "first", "second"]


async def test_what_starts_after_the_end_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    async with open_background() as background:
        group = TaskGroup(background)
        await group.close()
        group.start(trio.sleep_forever)
        await group.close()
        assert len(group) == 0


async def test_an_error_of_one_task_ends_no_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async with open_background() as background:
        group = TaskGroup(background)
        group.start(trio.sleep_forever)
        with caplog.at_level(logging.ERROR):
            group.start(fail)
            await wait_all_tasks_blocked()
        assert "ZeroDivisionError" in caplog.text
        assert len(group) == 1


def test_without_a_background_there_are_no_tasks() -> None:
    with pytest.raises(UnsupportedError, match="no store"):
        TaskGroup(None).check()


async def test_what_is_lazy_is_opened_once_by_all_who_ask_and_closed_in_the_end(
    autojump_clock: MockClock,
) -> None:
    events: list[str] = []

    @asynccontextmanager
    async def open_it() -> AsyncGenerator[int]:
        events.append("open")
        await trio.sleep(1)
        yield 7
        events.append("never")

    async with open_background() as background:
        lazy = Lazy(background, open_it)
        found: list[int] = []

        async def ask() -> None:
            found.append(await lazy.get())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
            await trio.sleep(0.5)
        with trio.CancelScope() as scope:
            scope.cancel()
            await lazy.get()
        assert found == [7, 7, 7]
    assert events == ["open"]


async def test_what_cannot_be_opened_is_tried_again(autojump_clock: MockClock) -> None:
    attempts: list[str] = []

    @asynccontextmanager
    async def open_it() -> AsyncGenerator[str]:
        await trio.lowlevel.checkpoint()
        attempts.append("one")
        if len(attempts) < 3:
            raise StoreError("not yet")
        yield "open"

    async with open_background() as background:
        lazy = Lazy(background, open_it)
        for _ in range(2):
            with pytest.raises(StoreError, match="not yet"):
                await lazy.get()
        assert await lazy.get() == "open"
