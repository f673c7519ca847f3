"""Who computes for long is held back; who computes for a moment is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from pie_trio.application.lifecycle.background import (
    MAX_CREDIT,
    BackgroundShare,
    Credit,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

SLICE_SECONDS = 0.01
SHARE = 0.05


def make_share(*, is_contended: bool = True) -> BackgroundShare:
    return BackgroundShare(
        share=SHARE, slice_seconds=SLICE_SECONDS, is_contended=lambda: is_contended
    )


async def compute(share: BackgroundShare, credit: Credit, num_slices: int) -> float:
    """Use up slices, which take no time here, and return how long that took."""
    started = trio.current_time()
    for _ in range(num_slices):
        await share.wait_turn(credit)
    return trio.current_time() - started


async def test_a_few_slices_are_not_held_back(autojump_clock: MockClock) -> None:
    assert await compute(make_share(), Credit(), MAX_CREDIT) == 0


async def test_whoever_computes_on_gets_its_share_of_a_core(
    autojump_clock: MockClock,
) -> None:
    seconds = await compute(make_share(), Credit(), MAX_CREDIT + 40)
    assert 0.9 < seconds / (40 * SLICE_SECONDS / SHARE) <= 1


async def test_several_that_compute_on_share_it(autojump_clock: MockClock) -> None:
    share, started = make_share(), trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(compute, share, Credit(), MAX_CREDIT + 10)
    seconds = trio.current_time() - started
    assert 0.9 < seconds / (40 * SLICE_SECONDS / SHARE) <= 1


async def test_credit_comes_back_with_time(autojump_clock: MockClock) -> None:
    share, credit = make_share(), Credit()
    await compute(share, credit, MAX_CREDIT)
    assert await compute(share, credit, 1) > 0
    await trio.sleep(MAX_CREDIT * SLICE_SECONDS / SHARE)
    assert await compute(share, credit, MAX_CREDIT) == 0


async def test_with_nobody_else_at_work_nobody_is_held_back(
    autojump_clock: MockClock,
) -> None:
    assert await compute(make_share(is_contended=False), Credit(), 1000) == 0


async def test_who_has_credit_does_not_wait_for_those_without(
    autojump_clock: MockClock,
) -> None:
    share, spent = make_share(), Credit()
    await compute(share, spent, MAX_CREDIT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(compute, share, spent, 100)
        await trio.sleep(SLICE_SECONDS)
        assert await compute(share, Credit(), MAX_CREDIT) == 0
        nursery.cancel_scope.cancel()
