"""However an instance ends, everything is back; ``open_rig`` asserts it for each test."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import (
    Client,
    Rig,
    assert_is_closed,
    open_rig,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock


@asynccontextmanager
async def closing(client: Client) -> AsyncGenerator[None]:
    """Close the client's session while the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.session.close)
        await wait_all_tasks_blocked()
        yield
    assert_is_closed(client.session)


async def test_an_idle_instance_gives_its_pages_back_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        async with rig.open_client() as client:
            client.session.alloc_kvpage(0, [0, 1])
            client.session.fork_kvpage(0, [0], [2])
        await client.session.close()  # twice is fine
        assert rig.pool.num_virtual == 0


async def test_close_waits_for_the_step_that_uses_the_pages() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        async with closing(client):
            assert rig.pool.num_virtual == 1, "the unused ones are back"
            rig.gate.open()


async def test_queued_commands_do_not_run_any_more() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1])
        client.session.fork_kvpage(0, [0, 1], [2, 3])
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        client.forward(b"y", pages=[0], start=1)  # waits for the first
        client.forward(b"z", pages=[1])
        client.forward(b"z", pages=[2])
        client.session.synchronize(0)
        client.session.cancel(client.forward(b"z", pages=[3]))
        async with closing(client):
            rig.gate.open()
        assert rig.engine.batch_sizes == [1]


async def test_a_command_that_was_cancelled_during_its_step_is_waited_for() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        ticket = client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        client.session.cancel(ticket)
        async with closing(client):
            assert rig.pool.num_virtual == 1
            rig.gate.open()


async def test_messages_without_room_are_delivered_after_the_end(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(limits=InstanceLimits(max_unread=1)) as rig:
        async with rig.open_client() as client:
            for text in "abc":
                client.session.send(text)
        assert await client.session.outbox.take() == ["a", "b", "c"]
        assert await client.session.outbox.take() == []


async def test_the_others_go_on_when_one_ends() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as stays:
        stays.session.alloc_kvpage(0, [0])
        async with rig.open_client() as goes:
            goes.session.alloc_kvpage(0, [0])
            goes.forward(b"x", pages=[0])
            await rig.gate.wait_started(1)
            goes.forward(b"y", pages=[0], start=1)
            kept = stays.forward(b"abc", pages=[0])
            rig.gate.open()
        assert await stays.take(kept) == fake_continuation(b"abc", 1)


async def test_an_instance_that_is_cancelled_together_with_its_model_ends() -> None:
    """The batcher may be gone before the session waits for its commands."""
    with trio.CancelScope() as scope:
        async with open_rig(gated=True) as rig, rig.open_client() as client:
            client.session.alloc_kvpage(0, [0])
            for start in range(3):
                client.forward(b"x", pages=[0], start=start)
            await rig.gate.wait_started(1)
            rig.gate.let_go()
            scope.cancel()
    assert scope.cancelled_caught
    rig.check_all_free()
    assert rig.engine.batch_sizes == [1]


@pytest.mark.parametrize("is_expected", [False, True], ids=["channel", "rendezvous"])
async def test_it_ends_too_if_its_command_is_on_the_way_to_the_device(
    autojump_clock: MockClock, is_expected: bool
) -> None:
    control = ControlConfig(policy="rendezvous:0.5,60")
    with trio.CancelScope() as scope:
        async with open_rig(control=control) as rig, rig.open_client() as client:
            await wait_all_tasks_blocked()
            client.session.alloc_kvpage(0, [0])
            client.forward(b"x", pages=[0])
            if is_expected:
                rig.models["fake"].batcher.arrivals.expect("test-1")
                await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert rig.pool.num_virtual == 0
    assert rig.engine.batch_sizes == []


async def test_a_session_may_outlive_its_model(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.is_outlived = True
        client = Client(rig.make_session())
        client.session.create_queue(0, "")
    rig.is_outlived = False
    client.session.alloc_kvpage(0, [0])
    client.forward(b"x", pages=[0])
    with trio.fail_after(30):
        await client.session.close()
    rig.check_all_free()


NUM_WAITS = 6


async def use_everything(rig: Rig, client: Client) -> None:
    """Wait once in each way that there is, with something of everything open."""
    session = client.session
    session.alloc_kvpage(0, [0, 1])
    await client.run(b"abcde", pages=[0, 1])
    session.fork_kvpage(0, [0, 1], [2, 3])
    branches = [client.forward(b"f", pages=p, start=5) for p in ([0, 1], [2, 3])]
    await client.resolve(session.wait(branches, None))
    client.forward(b"g", pages=[2, 3], start=6)
    session.dealloc_kvpage(0, [0, 1])
    session.alloc_kvpage(0, [0])
    await client.resolve(session.finish(client.forward(b"h", pages=[0])))
    client.forward(b"i", pages=[2, 3], start=7)
    await client.synchronize()
    session.send("a")
    late = session.send("b")
    assert late is not None
    client.forward(b"j", pages=[0], start=1)
    await client.resolve(session.wait([late], session.now() + 0.05))
    client.forward(b"k", pages=[0], start=2)
    await client.resolve(session.finish(late))  # for ever: nobody takes


@pytest.mark.parametrize("place", range(1, NUM_WAITS + 1))
@pytest.mark.parametrize("is_at_once", [False, True], ids=["blocked", "at once"])
async def test_an_instance_can_be_cancelled_at_each_wait(
    place: int, is_at_once: bool
) -> None:
    async with open_rig(limits=InstanceLimits(max_unread=1)) as rig:
        num_waits = 0
        reached = trio.Event()

        def on_wait() -> None:
            nonlocal num_waits
            num_waits += 1
            if num_waits == place:
                rig.gate.hold()
                reached.set()
                if is_at_once:
                    scope.cancel()

        async def run() -> None:
            async with rig.open_client() as client:
                client.on_wait = on_wait
                with scope:
                    await use_everything(rig, client)
            ended.set()

        scope, ended = trio.CancelScope(), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await reached.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            rig.gate.open()
            await ended.wait()
        assert scope.cancelled_caught
        rig.check_all_free()
