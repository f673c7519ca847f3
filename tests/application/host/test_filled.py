"""A forward never sees what an earlier owner of a page left in it."""

from __future__ import annotations

import pytest

from pie_trio.errors import CancelledError, EngineError, LimitError
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import open_rig

REFUSED = "withdrawn or has failed"


async def test_what_was_withdrawn_is_not_seen_but_can_be_run_again() -> None:
    async with open_rig() as rig:
        async with rig.open_client("earlier") as earlier:
            earlier.session.alloc_kvpage(0, [0, 1])
            await earlier.run(b"secret", pages=[0, 1])
        async with rig.open_client() as client:
            client.session.alloc_kvpage(0, [0, 1])
            client.session.cancel(client.forward(b"abcd", pages=[0, 1]))
            with pytest.raises(CancelledError, match=REFUSED):
                await client.run(b"e", pages=[0, 1], start=4)
            await client.run(b"abcd", pages=[0, 1])
            token = await client.run(b"e", pages=[0, 1], start=4)
    assert [token] == fake_continuation(b"abcde", 1)


async def test_what_was_already_submitted_behind_a_withdrawn_forward_is_refused() -> (
    None
):
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        blocker = client.forward(b"x", pages=[2])
        await rig.gate.wait_started(1)
        first = client.forward(b"abcd", pages=[0, 1])
        second = client.forward(b"e", pages=[0, 1], start=4)
        client.session.cancel(first)
        again = client.forward(b"abcd", pages=[0, 1])
        third = client.forward(b"e", pages=[0, 1], start=4)
        rig.gate.open()
        await client.take(blocker)
        with pytest.raises(CancelledError, match=REFUSED):
            await client.take(second)
        await client.take(again)
        assert await client.take(third) == fake_continuation(b"abcde", 1)


async def test_what_a_failed_batch_was_to_write_is_not_seen() -> None:
    async with (
        open_rig(failures={0: EngineError("broken")}) as rig,
        rig.open_client() as client,
    ):
        client.session.alloc_kvpage(0, [0, 1])
        with pytest.raises(EngineError, match="broken"):
            await client.run(b"abcd", pages=[0, 1])
        with pytest.raises(CancelledError, match=REFUSED):
            await client.run(b"e", pages=[0, 1], start=4)
        await client.run(b"abcd", pages=[0, 1])
        assert await client.run(b"e", pages=[0, 1], start=4)


async def test_a_failed_copy_is_not_seen() -> None:
    async with (
        open_rig(failures={1: EngineError("broken")}) as rig,
        rig.open_client() as client,
    ):
        client.session.alloc_kvpage(0, [0])
        await client.run(b"ab", pages=[0])
        client.session.fork_kvpage(0, [0], [1])
        with pytest.raises(EngineError, match="broken"):
            await client.run(b"c", pages=[1], start=2)
        with pytest.raises(CancelledError, match=REFUSED):
            await client.run(b"c", pages=[1], start=2)
        token = await client.run(b"c", pages=[0], start=2)
    assert [token] == fake_continuation(b"abc", 1)


async def test_a_page_that_was_lent_again_shows_nothing_of_before() -> None:
    async with open_rig(num_pages=1) as rig, rig.open_client() as client:
        for text in (b"ab", b"xy"):
            client.session.alloc_kvpage(0, [0])
            assert [await client.run(text, pages=[0])] == fake_continuation(text, 1)
            client.session.dealloc_kvpage(0, [0])


async def test_messages_are_bounded_by_their_size_too() -> None:
    from pie_trio.config import InstanceLimits

    limits = InstanceLimits(max_unread_bytes=100)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        assert client.session.send("x" * 90) is None
        assert client.session.send("y" * 90) is not None
        with pytest.raises(LimitError, match="bytes of messages wait"):
            client.session.send("z" * 90)
