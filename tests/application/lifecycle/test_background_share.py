"""Who computes for long is held back, with all that belongs to it; who works for a model is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.computing import (
    CHILD_SECONDS,
    LAUNCH_SECONDS,
    MAX_CHILDREN,
    MAX_SECONDS,
    OWNER_SECONDS,
    STEP_SECONDS,
    WORK_SECONDS,
    Account,
    Accounts,
)
from pie_trio.application.lifecycle.background import (
    WORKING_SHARE,
    BackgroundShare,
)

if TYPE_CHECKING:
    from trio.testing import MockClock

SLICE_SECONDS = 0.01
SHARE = 0.05
FREE_SLICES = round((LAUNCH_SECONDS + OWNER_SECONDS) / SLICE_SECONDS)


@pytest.fixture
def accounts() -> Accounts:
    return Accounts(SHARE)


def make_share(*, is_contended: bool = True) -> BackgroundShare:
    return BackgroundShare(share=SHARE, is_contended=lambda: is_contended)


async def compute(share: BackgroundShare, account: Account, num_slices: int) -> float:
    """Use up slices, which take no time here, and return how long that took."""
    started = trio.current_time()
    for _ in range(num_slices):
        account.charge(SLICE_SECONDS)
        await share.wait_turn(account)
    return trio.current_time() - started


async def compute_for(
    share: BackgroundShare, accounts: list[Account], seconds: float
) -> list[float]:
    """Let all compute side by side for so long, and return what each has used."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for account in accounts:
                nursery.start_soon(compute, share, account, 10**6)
    return [account.used_seconds for account in accounts]


async def test_a_few_slices_are_not_held_back(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    assert await compute(make_share(), accounts.open("ann"), FREE_SLICES) == 0


async def test_whoever_computes_on_gets_its_share_of_a_core(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    account, share = accounts.open("ann"), make_share()
    await compute(share, account, FREE_SLICES)
    seconds = await compute(share, account, 40)
    assert 0.9 < seconds / (40 * SLICE_SECONDS / SHARE) <= 1.1


@pytest.mark.parametrize("is_one_owner", [True, False])
async def test_several_that_compute_on_share_it(
    accounts: Accounts, autojump_clock: MockClock, is_one_owner: bool
) -> None:
    owners = ["ann"] * 8 if is_one_owner else [f"user {i}" for i in range(8)]
    made = [accounts.open(owner) for owner in owners]
    used = await compute_for(make_share(), made, 100.0)
    free = len(made) * LAUNCH_SECONDS + len(set(owners)) * OWNER_SECONDS
    assert sum(used) == pytest.approx(100 * SHARE + free, rel=0.1)
    assert max(used) < 1.5 * min(used)


async def test_an_owner_with_many_instances_gets_no_more_than_one_with_few(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    many = [accounts.open("ann") for _ in range(20)]
    few = accounts.open("bob")
    *of_ann, of_bob = await compute_for(make_share(), [*many, few], 200.0)
    assert of_bob > 0.8 * (sum(of_ann) - 20 * LAUNCH_SECONDS)


async def test_short_turns_count_as_slices_do(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    account, share = accounts.open("ann"), make_share()
    started = trio.current_time()
    for _ in range(4000):
        account.charge(SLICE_SECONDS / 10)  # and it sleeps before its slice is over
        if account.is_overdrawn:
            await share.wait_turn(account)
    seconds = trio.current_time() - started
    assert seconds > 0.9 * (4.0 - LAUNCH_SECONDS - OWNER_SECONDS) * (1 / SHARE - 1)


async def test_steps_of_the_device_earn_what_a_decode_loop_computes(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    for_the_model, spinning = accounts.open("ann"), accounts.open("ann")
    spinning.charge(10.0)  # the owner has nothing left
    assert spinning.is_overdrawn
    for _ in range(1000):
        for_the_model.earn(1)
        for_the_model.charge(0.9 * STEP_SECONDS)
        assert not for_the_model.is_overdrawn
    for_the_model.charge(MAX_SECONDS)
    assert for_the_model.is_overdrawn


async def test_what_is_earned_is_not_kept_for_ever(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    account = accounts.open("ann")
    account.earn(10**6)
    account.charge(MAX_SECONDS + OWNER_SECONDS + SLICE_SECONDS)
    assert account.debt_seconds == pytest.approx(SLICE_SECONDS)


async def test_what_an_owner_may_use_comes_back_with_time(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share, account = make_share(), accounts.open("ann")
    await compute(share, account, FREE_SLICES)
    assert await compute(share, account, 1) > 0
    await trio.sleep(OWNER_SECONDS / SHARE)
    assert await compute(share, account, round(OWNER_SECONDS / SLICE_SECONDS)) == 0


async def test_owners_that_sleep_between_their_turns_get_no_more_together(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share, made = make_share(), [accounts.open(f"user {i}") for i in range(8)]

    async def compute_and_sleep(account: Account) -> None:
        while True:
            account.charge(SLICE_SECONDS / 10)
            if account.is_overdrawn:
                await share.wait_turn(account)
            await trio.sleep(SLICE_SECONDS / 10)

    with trio.move_on_after(100):
        async with trio.open_nursery() as nursery:
            for account in made:
                nursery.start_soon(compute_and_sleep, account)
    used = sum(account.used_seconds for account in made)
    free = len(made) * (LAUNCH_SECONDS + OWNER_SECONDS)
    assert used - free < 2.2 * SHARE * 100, (
        "what they earn, and the turns of the overdrawn"
    )


async def test_with_nobody_else_at_work_nobody_is_held_back(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share = make_share(is_contended=False)
    assert await compute(share, accounts.open("ann"), 1000) == 0


async def work(share: BackgroundShare, account: Account, num_steps: int) -> float:
    """Compute for a slice, which takes no time here, after each step; return how long it took."""
    started = trio.current_time()
    for _ in range(num_steps):
        account.earn(1)
        account.charge(SLICE_SECONDS)
        await share.wait_turn(account)
    return trio.current_time() - started


async def test_who_computes_much_between_steps_is_not_held_back_for_others_that_do(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share, made = make_share(), [accounts.open(owner) for owner in ("ann", "bob")]
    for account in made:
        account.charge(1.0)
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for account in made:
            nursery.start_soon(work, share, account, 100)
    assert trio.current_time() == started


async def test_who_computes_much_between_steps_shares_a_part_of_a_core_beside_one_that_does_not(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share, much, little = make_share(), accounts.open("ann"), accounts.open("bob")
    much.charge(LAUNCH_SECONDS + OWNER_SECONDS)

    async def keep_to_it() -> None:
        while True:
            little.earn(1)
            little.charge(STEP_SECONDS)
            await trio.sleep(SLICE_SECONDS)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_to_it)
        await wait_all_tasks_blocked()
        seconds = await work(share, much, 400)
        nursery.cancel_scope.cancel()
    waited = 400 * (SLICE_SECONDS - STEP_SECONDS) * (1 / WORKING_SHARE - 1)
    earned = seconds * SHARE * (1 / WORKING_SHARE - 1)
    assert waited - 2 * earned <= seconds <= waited


async def test_who_works_no_more_counts_as_one_that_does_nothing_but_compute(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share, account = make_share(), accounts.open("ann")
    account.charge(LAUNCH_SECONDS + OWNER_SECONDS)
    assert await work(share, account, 10) == 0
    await trio.sleep(WORK_SECONDS)
    account.charge(OWNER_SECONDS + SLICE_SECONDS)
    assert await compute(share, account, 1) > SLICE_SECONDS


async def test_the_first_children_are_not_at_the_cost_of_the_instance(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    account = accounts.open("ann")
    account.charge(LAUNCH_SECONDS + OWNER_SECONDS)
    for _ in range(MAX_CHILDREN):
        account.add_child()
        account.charge(CHILD_SECONDS)
    assert not account.is_overdrawn
    account.add_child()
    account.charge(CHILD_SECONDS)
    assert account.is_overdrawn


async def test_who_has_something_left_does_not_wait_for_those_without(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share, spent = make_share(), accounts.open("ann")
    await compute(share, spent, FREE_SLICES)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(compute, share, spent, 100)
        await trio.sleep(SLICE_SECONDS)
        assert await compute(share, accounts.open("bob"), FREE_SLICES) == 0
        nursery.cancel_scope.cancel()


async def test_who_gives_up_its_turn_leaves_it_to_the_next(
    accounts: Accounts, autojump_clock: MockClock
) -> None:
    share = make_share()
    made = [accounts.open(owner) for owner in ("ann", "bob", "eve")]
    for account in made:
        account.charge(1.0)
    async with trio.open_nursery() as nursery:
        scopes = [trio.CancelScope() for _ in made]

        async def wait(account: Account, scope: trio.CancelScope) -> None:
            with scope:
                await share.wait_turn(account)

        for account, scope in zip(made, scopes, strict=True):
            nursery.start_soon(wait, account, scope)
            await wait_all_tasks_blocked()
        scopes[0].cancel()  # it has the turn
        scopes[1].cancel()  # it waits, or has just been given it
        await wait_all_tasks_blocked()
        assert not scopes[2].cancelled_caught
    assert await compute(share, made[2], 1) < 1.0
