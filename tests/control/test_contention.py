from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.control.contention import (
    Evict,
    Fail,
    Fcfs,
    Holding,
    Ladder,
    Reclaim,
    Relief,
    Shortage,
    SignalPressure,
    Suspend,
    SwapOwn,
    Wait,
    make_contention_policy,
)
from pie_trio.control.tenants import Tenant
from pie_trio.errors import (
    CancelledError,
    ConfigError,
    EngineError,
    OutOfPagesError,
)
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.control.guests import PAGE_SIZE, Guest, World, open_world

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from trio.testing import MockClock

OLD, MIDDLE, NEW = (Tenant(name, age) for age, name in enumerate(["o", "m", "n"]))
EVICTED = Tenant("e", 9)
EVICTED.is_evicted = True


def shortage(
    requester: Tenant = MIDDLE, *holdings: Holding, **changes: Any
) -> Shortage:
    details: dict[str, Any] = {
        "num_needed": 2,
        "num_missing": 1,
        "num_attainable": 8,
        "num_own_idle": 0,
        "num_reclaimable": 0,
        "pressure_seconds": 0.5,
        "num_swap_free": 99,
        "is_progressing": False,
    }
    return Shortage(requester, holdings=holdings, **{**details, **changes})


BUSY_OLD, BUSY_NEW = Holding(OLD, 3, 0.0), Holding(NEW, 3, 0.0)
IDLE_OLD = Holding(OLD, 3, 1.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (shortage(MIDDLE, num_needed=9), Fail()),
        (shortage(MIDDLE, num_needed=9, is_progressing=True), Wait(0.02)),
        (shortage(MIDDLE, num_needed=9, num_own_idle=3), SwapOwn(1)),
        (
            shortage(MIDDLE, num_needed=9, num_own_idle=3, pressure_seconds=None),
            SignalPressure(),
        ),
        (shortage(MIDDLE, num_needed=9, num_own_idle=3, num_swap_free=0), Fail()),
        (shortage(MIDDLE, num_needed=12, num_own_idle=3), Fail()),
        (shortage(MIDDLE, num_reclaimable=5), Reclaim(1)),
        (shortage(MIDDLE, BUSY_NEW, pressure_seconds=None), SignalPressure()),
        (shortage(MIDDLE, BUSY_NEW, pressure_seconds=0.01), Wait(0.04)),
        (shortage(MIDDLE, BUSY_OLD, BUSY_NEW), Suspend(NEW)),
        (shortage(OLD, Holding(MIDDLE, 3, 0), BUSY_NEW), Suspend(NEW)),
        (
            shortage(OLD, Holding(MIDDLE, 3, 0), BUSY_NEW, num_swap_free=2),
            Evict(NEW),
        ),
        (
            shortage(OLD, Holding(MIDDLE, 1, 0), BUSY_NEW, num_swap_free=2),
            Suspend(MIDDLE),
        ),
        (shortage(MIDDLE, BUSY_OLD), Wait(0.02)),
        (shortage(MIDDLE, Holding(OLD, 3, 0.1)), Wait(0.02)),
        (shortage(MIDDLE, IDLE_OLD), Suspend(OLD)),
        (shortage(MIDDLE, IDLE_OLD, num_swap_free=0), Evict(MIDDLE)),
        (
            shortage(MIDDLE, IDLE_OLD, num_swap_free=0, is_progressing=True),
            Wait(0.02),
        ),
        (shortage(MIDDLE, Holding(NEW, 0, 0)), Wait(0.02)),
        (shortage(MIDDLE, Holding(NEW, 0, 9)), Evict(NEW)),
        (shortage(MIDDLE, BUSY_NEW, Holding(EVICTED, 1, 0)), Wait(0.02)),
    ],
    ids=[
        "can never fit",
        "but something may give pages back",
        "its own to host memory",
        "tell it first",
        "no room for its own",
        "too large even so",
        "exports",
        "tell",
        "grace",
        "newest to host memory",
        "the newest of two",
        "no room there",
        "room for another",
        "older ones go first",
        "which are busy between steps",
        "an idle one does not",
        "no room for the idle one",
        "somebody runs",
        "shared pages free nothing",
        "but nobody runs",
        "one is about to end",
    ],
)
def test_the_ladder_is_climbed_step_by_step(found: Shortage, expected: Relief) -> None:
    relief = Ladder().relieve(found)
    if isinstance(relief, Wait):
        assert isinstance(expected, Wait)
        assert relief.seconds == pytest.approx(expected.seconds)
    else:
        assert relief == expected


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (shortage(MIDDLE, num_needed=9), Fail()),
        (shortage(MIDDLE, num_reclaimable=5), Reclaim(1)),
        (shortage(MIDDLE, BUSY_OLD, BUSY_NEW), Evict(NEW)),
        (shortage(MIDDLE, BUSY_OLD), Evict(MIDDLE)),
        (shortage(MIDDLE, BUSY_OLD, Holding(EVICTED, 1, 0)), Wait(0.02)),
        (shortage(MIDDLE, is_progressing=True), Wait(0.02)),
        (shortage(MIDDLE), Fail()),
    ],
    ids=["never", "exports", "newest", "requester", "ending", "progress", "nobody"],
)
def test_fcfs_ends_the_newest(found: Shortage, expected: Relief) -> None:
    assert Fcfs().relieve(found) == expected


def test_a_wrong_name_is_refused_with_the_right_ones() -> None:
    assert make_contention_policy("ladder") == Ladder()
    assert make_contention_policy("fcfs") == Fcfs()
    with pytest.raises(ConfigError, match="'lifo': choose one of ladder, fcfs"):
        make_contention_policy("lifo")


# ---- with an engine --------------------------------------------------------------------

PROMPTS = [list(b"hello"), list(b"other"), list(b"third one")]


async def decode_all(
    world: World, num_tokens: int, num_guests: int = 3
) -> list[list[int] | None]:
    """Let guests decode side by side; return their tokens, None for one that was ended."""
    found: list[list[int] | None] = [None] * num_guests

    async def work(index: int, guest: Guest) -> None:
        try:
            found[index] = await guest.decode(PROMPTS[index], num_tokens)
        except (OutOfPagesError, CancelledError):
            assert guest.error is not None, "it was not told why"
        guest.close()

    async with trio.open_nursery() as nursery:
        for index in range(num_guests):
            nursery.start_soon(work, index, world.launch())
    return found


EXPECTED: list[list[int] | None] = [fake_continuation(p, 20) for p in PROMPTS]


async def test_with_host_memory_everybody_gets_the_tokens_of_an_empty_server(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=8) as world:
            found = await decode_all(world, 20)
            assert world.evicted == []
    assert found == EXPECTED
    kinds = {record.outcome for record in world.batcher.trace.commands}
    assert kinds == {"ok"}


async def test_without_host_memory_the_newest_are_ended(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=8, swap_pages=0) as world:
            found = await decode_all(world, 20)
            assert world.evicted == ["g1", "g2"]
    assert found == [EXPECTED[0], None, None]


async def test_fcfs_ends_the_newest_although_there_is_host_memory(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=8, contention="fcfs") as world:
            found = await decode_all(world, 20)
    assert found == [EXPECTED[0], None, None]


async def test_suspended_ones_go_on_in_order_of_age(autojump_clock: MockClock) -> None:
    ended: list[int] = []

    async def work(index: int, guest: Guest) -> None:
        assert await guest.decode(PROMPTS[index], 20) == EXPECTED[index]
        ended.append(index)
        guest.close()

    with trio.fail_after(60):
        async with open_world(num_pages=8) as world, trio.open_nursery() as nursery:
            for index in range(3):
                nursery.start_soon(work, index, world.launch())
    assert ended == [0, 1, 2]


async def test_one_inferlet_may_have_more_contexts_than_the_device_has_room_for(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=4) as world:
            guest = world.launch()
            contexts = [guest.allocate(3) for _ in range(4)]
            for number, handles in enumerate(contexts):
                await guest.run([*range(number, number + 8)], handles)
            numbers = [
                guest.forward([1], handles, start=8) for handles in contexts
            ]  # at once
            await world.outcomes.wait(*numbers)
            for number, (context, ticket) in enumerate(
                zip(contexts, numbers, strict=True)
            ):
                tokens = [*range(number, number + 8), 1]
                assert world.outcomes.tokens(ticket) == fake_continuation(tokens, 1)
                assert (
                    await guest.run([2], context, start=9)
                    == fake_continuation([*tokens, 2], 1)[0]
                )


async def test_one_inferlet_is_told_before_its_pages_are_moved(
    autojump_clock: MockClock,
) -> None:
    def help_out() -> bool:
        guest.release(first)
        return True

    with trio.fail_after(60):
        async with open_world(num_pages=4) as world:
            guest = world.launch(on_pressure=help_out)
            await guest.run(range(12), first := guest.allocate(3))
            await guest.run(range(8), guest.allocate(2))
            assert not world.pool.swapped


async def test_a_command_that_can_never_fit_fails_with_numbers(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=4, swap_pages=0) as world:
            guest = world.launch()
            first = guest.allocate(3)
            await guest.run(range(12), first)
            number = guest.forward(range(8), guest.allocate(2))
            await world.outcomes.wait(number)
            error = world.outcomes.error(number)
            assert isinstance(error, OutOfPagesError)
            assert (error.needed, error.free, error.total) == (2, 1, 4)
            assert guest.error is None, "it may give pages back and go on"
            guest.release(first)
            assert await guest.run(range(8), guest.allocate(2)) >= 0


async def test_exports_that_nobody_uses_go_first(autojump_clock: MockClock) -> None:
    async with open_world(num_pages=3) as world:
        owner = world.launch()
        handles = owner.allocate(2)
        await owner.run(range(8), handles)
        exported = [owner.table.remove(handle) for handle in handles]
        asked: list[int] = []

        def reclaim(count: int) -> int:
            asked.append(count)
            for _ in range(count):
                world.pool.release(exported.pop())
            return len(exported)

        world.batcher.reclaim = reclaim
        with trio.fail_after(60):
            await world.launch().run(range(8), world.guests[-1].allocate(2))
        assert [count for count in asked if count] == [1]
        world.pool.release(exported.pop())


async def test_exports_that_free_nothing_do_not_stop_the_ladder(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=8) as world:
            world.batcher.reclaim = lambda _: 3
            assert await decode_all(world, 20) == EXPECTED


async def test_inferlets_that_hear_of_pressure_may_help(
    autojump_clock: MockClock,
) -> None:
    async with open_world(num_pages=4) as world:
        heard: list[float] = []

        def listen() -> bool:
            heard.append(trio.current_time())
            world.nursery.start_soon(help_later)
            return True

        async def help_later() -> None:
            await trio.sleep(0.03)
            listener.release(handles)

        old = world.launch()
        listener = world.launch(on_pressure=listen)
        handles = listener.allocate(3)
        await listener.run(range(12), handles)
        with trio.fail_after(60):
            await old.run(range(8), old.allocate(2))
        assert len(heard) == 1
        assert not listener.tenant.is_suspended
        assert trio.current_time() - heard[0] < 0.05, "it went on at once"


async def test_who_does_not_help_in_time_is_suspended(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=4) as world:
            old = world.launch()
            deaf = world.launch(on_pressure=lambda: True)
            handles = deaf.allocate(3)
            await deaf.run(range(12), handles)
            begun = trio.current_time()
            context = old.allocate(2)
            await old.run(range(8), context)
            assert trio.current_time() - begun >= 0.05
            assert deaf.tenant.is_suspended
            assert len(world.pool.swapped) == 3
            old.release(context)
            expected = fake_continuation([*range(12), 5], 1)
            handles += deaf.allocate(1)
            assert [await deaf.run([5], handles, start=12)] == expected


async def test_an_idle_older_one_makes_room_and_comes_back(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(num_pages=4) as world:
            chat, young = world.launch(), world.launch()
            handles = chat.allocate(3)
            await chat.run(range(12), handles)
            await young.run(range(8), young.allocate(2))
            assert chat.tenant.is_suspended
            handles += chat.allocate(1)
            expected = fake_continuation([*range(12), 5], 1)
            assert [await chat.run([5], handles, start=12)] == expected
            assert young.tenant.is_suspended
            assert world.evicted == []


async def test_an_inferlet_may_have_its_pages_moved_by_itself(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        guest = world.launch()
        handles = guest.allocate(2)
        await guest.run(range(6), handles)
        for _ in range(2):  # once more does nothing
            done = trio.Event()
            world.batcher.suspend(guest.tenant, done.set)
            with trio.fail_after(60):
                await done.wait()
            assert world.pool.num_free == 8
        expected = fake_continuation([*range(6), 9], 1)
        assert [await guest.run([9], handles, start=6)] == expected
        assert world.pool.swapped == {}


async def test_commands_in_flight_survive_that_their_inferlet_is_suspended(
    autojump_clock: MockClock,
) -> None:
    async with open_world(max_batch_tokens=16, chunk_tokens=8) as world:
        guest, other = world.launch(), world.launch()
        handles = guest.allocate(5)
        prompt = list(range(100, 118))
        long = guest.forward(prompt * 1, handles)
        after = guest.forward([7], handles, start=18)
        done = trio.Event()
        world.batcher.suspend(guest.tenant, done.set)
        with trio.fail_after(60):
            await other.run([1], other.allocate(1))
            await world.outcomes.wait(long, after)
        assert world.outcomes.tokens(long) == fake_continuation(prompt, 1)
        assert world.outcomes.tokens(after) == fake_continuation([*prompt, 7], 1)
        assert done.is_set()


async def test_what_a_suspended_inferlet_shares_can_be_used_by_others(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world:
        guest, other = world.launch(), world.launch()
        handles = guest.allocate(2)
        await guest.run(range(6), handles)
        done = trio.Event()
        world.batcher.suspend(guest.tenant, done.set)
        with trio.fail_after(60):
            await done.wait()
            assert len(world.pool.swapped) == 2
            forks = other.fork(handles, guest)
            found = await other.run([3], forks, start=6)
            assert [found] == fake_continuation([*range(6), 3], 1)
            found = await guest.run([4], handles, start=6)
            assert [found] == fake_continuation([*range(6), 4], 1)


class BrokenEngine(FakeEngine):
    """Pages cannot be moved from it, or not back."""

    def __init__(self, broken: str) -> None:
        super().__init__(num_pages=8, page_size=PAGE_SIZE)
        self.broken = broken

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        if self.broken == "read":
            raise EngineError("scripted")
        return super().read_pages(page_ids)

    def write_pages(self, page_ids: NDArray[np.int32], data: NDArray[np.uint8]) -> None:
        if self.broken == "write":
            raise ValueError("scripted")
        super().write_pages(page_ids, data)


async def test_where_pages_cannot_be_read_the_newest_are_ended(
    autojump_clock: MockClock,
) -> None:
    with trio.fail_after(60):
        async with open_world(engine=BrokenEngine("read")) as world:
            assert await decode_all(world, 20) == [EXPECTED[0], None, None]


async def test_pages_that_cannot_be_written_back_are_lost_and_never_shown(
    autojump_clock: MockClock,
) -> None:
    async with open_world(engine=BrokenEngine("write")) as world:
        guest = world.launch()
        handles = guest.allocate(2)
        await guest.run(range(6), handles)
        done = trio.Event()
        world.batcher.suspend(guest.tenant, done.set)
        with trio.fail_after(60):
            await done.wait()
            number = guest.forward([9], handles, start=6)
            await world.outcomes.wait(number)
            assert isinstance(world.outcomes.error(number), CancelledError)
            expected = fake_continuation([*range(6)], 1)
            assert [await guest.run(range(6), handles)] == expected, "it may run again"


async def test_an_ended_inferlet_that_stays_does_not_block_the_others(
    autojump_clock: MockClock,
) -> None:
    """Its commands fail at once, also those that it submits later."""
    with trio.fail_after(60):
        async with open_world(num_pages=4, swap_pages=0) as world:
            old, new = world.launch(), world.launch()
            new._on_evicted = lambda error: None  # type: ignore[method-assign]
            new.tenant.on_evicted = lambda error: setattr(new, "error", error)
            await new.run(range(12), new.allocate(3))
            handles = old.allocate(2)
            number = old.forward(range(8), handles)
            await trio.sleep(1)
            assert new.error is not None
            late = new.forward([1], new.allocate(1))
            await world.outcomes.wait(late)
            assert isinstance(world.outcomes.error(late), OutOfPagesError)
            new.close()
            await world.outcomes.wait(number)
            assert world.outcomes.tokens(number)


async def test_a_cycle_of_waiting_inferlets_is_broken(
    autojump_clock: MockClock,
) -> None:
    """The old one waits for a page that the new one writes, which waits for the old one."""
    with trio.fail_after(60):
        async with open_world(num_pages=4) as world:
            old, new = world.launch(), world.launch()
            await old.run(range(12), old.allocate(3))
            handles = new.allocate(2)
            first = new.forward(range(8), handles)
            forks = old.fork(handles, new)
            second = old.forward([1], [*forks, *old.allocate(1)], start=8)
            await world.outcomes.wait(first, second)
            assert world.outcomes.tokens(first) == fake_continuation(range(8), 1)
            expected = fake_continuation([*range(8), 1], 1)
            assert world.outcomes.tokens(second) == expected
            assert world.evicted == []


async def test_inferlets_that_share_all_their_pages_and_want_more_do_not_wait_for_ever(
    autojump_clock: MockClock,
) -> None:
    """Each has a ready command, and none of them can run."""
    with trio.fail_after(60):
        async with open_world(num_pages=4) as world:
            old, middle, new = (world.launch() for _ in range(3))
            await old.run(range(8), old_handles := old.allocate(2))
            await middle.run(range(8), shared := middle.allocate(2))
            forks = new.fork(shared, middle)
            numbers = [
                guest.forward([1], [*handles, *guest.allocate(1)], start=8)
                for guest, handles in [(new, forks), (middle, shared)]
            ]
            first = old.forward([1], [*old_handles, *old.allocate(1)], start=8)
            await world.outcomes.wait(first, *numbers)
            assert world.outcomes.tokens(first) == fake_continuation([*range(8), 1], 1)
            assert "g0" not in world.evicted


async def test_a_batcher_that_stops_ends_what_waits_to_be_suspended(
    autojump_clock: MockClock,
) -> None:
    calls: list[str] = []
    async with open_world() as world:
        guest = world.launch()
        world.batcher.suspend(guest.tenant, partial(calls.append, "a"))
    world.batcher.suspend(guest.tenant, partial(calls.append, "b"))
    assert calls == ["a", "b"]
