from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.control.rendezvous import Rendezvous

if TYPE_CHECKING:
    from trio.testing import MockClock


async def wait(
    rendezvous: Rendezvous, settled: list[float], patience: float = 9
) -> None:
    await rendezvous.wait_settled(timeout_seconds=patience)
    settled.append(trio.current_time())


async def test_there_is_no_wait_for_nobody(autojump_clock: MockClock) -> None:
    with trio.fail_after(5):
        await Rendezvous().wait_settled(timeout_seconds=9)
        assert trio.current_time() == 0


async def test_the_batcher_waits_until_the_last_one_has_settled(
    autojump_clock: MockClock,
) -> None:
    rendezvous, settled = Rendezvous(), list[float]()
    for name in ("a", "b"):
        rendezvous.expect(name)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, rendezvous, settled)
            await trio.sleep(1)
            rendezvous.settle("b")
            rendezvous.settle("b")
            rendezvous.settle("stranger")
            await wait_all_tasks_blocked()
            assert settled == []
            await trio.sleep(1)
            rendezvous.settle("a")
    assert settled == [2]


async def test_who_is_late_is_waited_for_once(autojump_clock: MockClock) -> None:
    rendezvous, settled = Rendezvous(), list[float]()
    rendezvous.expect("late")
    with trio.fail_after(20):
        await wait(rendezvous, settled, patience=3)
        assert settled == [3], "no longer than the timeout"
        assert rendezvous.num_expected == 0
        await wait(rendezvous, settled, patience=3)
        assert settled == [3, 3]
        rendezvous.settle("late")
        rendezvous.expect("late")
        await wait(rendezvous, settled, patience=3)
        assert settled == [3, 3, 6], "again, once it has waited itself"


async def test_who_is_resumed_during_the_wait_is_waited_for_too(
    autojump_clock: MockClock,
) -> None:
    rendezvous, settled = Rendezvous(), list[float]()
    rendezvous.expect("a")
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, rendezvous, settled)
            await trio.sleep(1)
            rendezvous.expect("b")
            rendezvous.settle("a")
            await trio.sleep(1)
            assert settled == []
            rendezvous.settle("b")
    assert settled == [2]
