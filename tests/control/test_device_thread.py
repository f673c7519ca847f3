from __future__ import annotations

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.control.device_thread import DeviceThread, open_device_thread
from pie_trio.inference.fake import FakeEngine
from tests.control.engines import TIME_LIMIT_SECONDS


def fail() -> None:
    raise KeyError("scripted")


async def test_calls_run_in_one_thread_that_is_not_the_callers() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(FakeEngine()) as device:
            threads = {await device.run(threading.current_thread) for _ in range(3)}
    (thread,) = threads
    assert thread is not threading.current_thread()
    assert thread.name == "device of fake"
    assert not thread.is_alive(), "it ends with the block"


async def test_what_a_call_raises_is_raised_and_the_thread_goes_on() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(FakeEngine()) as device:
            with pytest.raises(KeyError, match="scripted"):
                await device.run(fail)
            assert await device.run(lambda: 3) == 3


async def test_a_call_is_not_abandoned_when_its_caller_is_cancelled() -> None:
    started, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> str:
        started.set()
        go_on.wait(TIME_LIMIT_SECONDS)
        ended.set()
        return "done"

    results: list[str] = []

    async def call(device: DeviceThread, scope: trio.CancelScope) -> None:
        with scope:
            results.append(await device.run(work))

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(FakeEngine()) as device:
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()
                nursery.start_soon(call, device, scope)
                await trio.to_thread.run_sync(started.wait)
                scope.cancel()
                await wait_all_tasks_blocked()
                assert not ended.is_set()
                go_on.set()
            assert ended.is_set()
    assert results == ["done"], "what it returned is not lost"


async def test_a_cancelled_caller_starts_nothing() -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(FakeEngine()) as device:
            with trio.CancelScope() as scope:
                scope.cancel()
                await device.run(fail)
            assert scope.cancelled_caught


async def test_the_thread_ends_when_the_block_ends_by_an_error() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_device_thread(FakeEngine()) as device:
            await device.run(fail)
    assert threading.active_count() == before
