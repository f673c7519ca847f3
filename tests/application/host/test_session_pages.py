from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    InferletError,
    LimitError,
    OutOfPagesError,
    UnknownHandleError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, open_rig

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = [256, *b"Once upon"]
LENGTH = len(PROMPT)
PAGES = [0, 1, 2]  # room for two more tokens


async def test_a_prompt_gives_the_same_token_however_it_is_cut() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, PAGES)
        for start, stop in ((0, 3), (3, 4), (4, LENGTH)):
            tokens = PROMPT[start:stop]
            last = client.forward(tokens, pages=PAGES, start=start)
        assert await client.take(last) == fake_continuation(PROMPT, 1)


async def test_a_fork_that_is_written_gets_its_own_copy_and_the_other_keeps_its() -> (
    None
):
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, PAGES)
        client.forward(PROMPT, pages=PAGES)
        forked = [10, 11, 12]
        client.session.fork_kvpage(0, PAGES, forked)
        assert rig.pool.num_virtual == 3, "nothing is copied yet"
        tickets = [
            client.forward([token], pages=pages, start=LENGTH)
            for pages, token in ((forked, 65), (PAGES, 66), (forked, 67))
        ]
        assert rig.pool.num_virtual == 4, "one page is"
        assert [await client.take(ticket) for ticket in tickets] == [
            fake_continuation([*PROMPT, token], 1) for token in (65, 66, 67)
        ]
        copies = [copy for batch in rig.engine.batches for copy in batch.copies]
        assert len(copies) == 1


async def test_a_fork_that_is_only_read_is_not_copied() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2, 3])
        client.forward(PROMPT[:8], pages=[0, 1])
        client.session.fork_kvpage(0, [0, 1], [10, 11])
        token = await client.run(PROMPT[8:], pages=[10, 11, 3], start=8)
        assert [token] == fake_continuation(PROMPT, 1)
        assert rig.pool.num_virtual == 4


async def test_cancelling_the_first_write_of_a_fork_does_not_lose_what_it_shared() -> (
    None
):
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, PAGES)
        client.forward(PROMPT, pages=PAGES)
        await rig.gate.wait_started(1)
        forked = [10, 11, 12]
        client.session.fork_kvpage(0, PAGES, forked)
        ticket = client.forward([65], pages=forked, start=LENGTH)
        client.session.cancel(ticket)
        again = client.forward([66], pages=forked, start=LENGTH)
        rig.gate.open()
        assert await client.take(again) == fake_continuation([*PROMPT, 66], 1)


async def test_tokens_see_what_is_written_before_their_position() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2, 3])
        # "junk" comes later in the order of positions, and a slot stays empty.
        client.forward(b"junk", pages=[0], positions=range(100, 104))
        client.forward(PROMPT[:5], pages=[0, 1, 2], start=4, positions=range(5))
        rest = client.forward(
            PROMPT[5:], pages=[0, 1, 2, 3], start=10, positions=range(5, LENGTH)
        )
        assert await client.take(rest) == fake_continuation(PROMPT, 1)


async def test_a_guest_may_hide_slots_itself() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2, 3])
        client.forward(b"junk", pages=[0])
        rows = [[4, i + 1] for i in range(LENGTH)]
        token = await client.run(
            PROMPT, pages=[0, 1, 2, 3], start=4, positions=range(LENGTH), mask=rows
        )
        assert [token] == fake_continuation(PROMPT, 1)


async def test_a_page_number_can_be_used_again_while_a_command_still_reads_the_page() -> (
    None
):
    async with open_rig(gated=True, num_pages=6) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, PAGES)
        first = client.forward(PROMPT, pages=PAGES)
        await rig.gate.wait_started(1)
        second = client.forward([65], pages=PAGES, start=LENGTH)
        client.session.dealloc_kvpage(0, PAGES)
        client.session.alloc_kvpage(0, PAGES)
        other = [256, *b"Twice"]
        third = client.forward(other, pages=PAGES)
        assert rig.pool.num_virtual == 6
        rig.gate.open()
        assert await client.take(first) == fake_continuation(PROMPT, 1)
        assert await client.take(second) == fake_continuation([*PROMPT, 65], 1)
        assert await client.take(third) == fake_continuation(other, 1)
        assert rig.pool.num_virtual == 3


async def test_a_context_larger_than_the_model_s_memory_is_refused_at_once() -> None:
    async with open_rig(num_pages=2) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, PAGES)
        with pytest.raises(OutOfPagesError, match="need 3 KV pages but only 2 of 2"):
            client.forward(PROMPT, pages=PAGES)
        assert len(client.session.tickets) == 0
        assert await client.run(PROMPT[:8], pages=[0, 1]) >= 0


async def test_pages_take_no_memory_before_they_are_written() -> None:
    async with open_rig(num_pages=2) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, range(100))
        client.session.fork_kvpage(0, [50], [200])
        assert rig.pool.num_free == 2
        assert await client.run(PROMPT[:3], pages=[50]) >= 0
        assert await client.run(PROMPT[:3], pages=[200]) >= 0
        assert rig.pool.num_free == 0


async def test_a_forward_that_finds_no_page_fails_and_says_so() -> None:
    control = ControlConfig(policy="rendezvous:0.5,0", swap_bytes=0)
    async with (
        open_rig(num_pages=2, control=control) as rig,
        rig.open_client() as client,
    ):
        client.session.alloc_kvpage(0, PAGES)
        await client.run(PROMPT[:8], pages=[0, 1])
        ticket = client.forward(b"x", pages=[2])
        with pytest.raises(OutOfPagesError, match="need 1 KV pages but only 0 of 2"):
            await client.take(ticket)
        client.session.dealloc_kvpage(0, [0])
        assert await client.run(b"x", pages=[2]) >= 0, "its number can be used again"


async def test_pages_of_one_instance_mean_nothing_in_another() -> None:
    async with open_rig() as rig, rig.open_client() as one, rig.open_client() as other:
        one.session.alloc_kvpage(0, [0])
        one.forward(b"mine", pages=[0])
        for use in (
            lambda: other.forward(b"x", pages=[0]),
            lambda: other.session.dealloc_kvpage(0, [0]),
            lambda: other.session.fork_kvpage(0, [0], [1]),
        ):
            with pytest.raises(UnknownHandleError, match="page 0"):
                use()
        other.session.alloc_kvpage(0, [0])
        token = await other.run(b"your", pages=[0])
        assert [token] == fake_continuation(b"your", 1)


async def test_each_model_has_pages_of_its_own() -> None:
    async with open_rig(names=["a", "b"]) as rig, rig.open_client() as client:
        pools = [model.pool for model in rig.models.values()]
        client.session.create_queue(1, "b")
        client.session.alloc_kvpage(0, [7])
        with pytest.raises(UnknownHandleError):
            client.forward(b"x", pages=[7], queue=1)
        client.session.alloc_kvpage(1, [7, 8])
        assert [pool.num_virtual for pool in pools] == [1, 2]
        tickets = [
            client.forward(b"abc", pages=[7], queue=0),
            client.forward(b"xyz", pages=[7], queue=1),
        ]
        assert [await client.take(ticket) for ticket in tickets] == [
            fake_continuation(b"abc", 1),
            fake_continuation(b"xyz", 1),
        ]
        client.session.dealloc_kvpage(1, [7])
        assert await client.run(b"d", pages=[7], start=3, queue=0) >= 0


async def test_allocating_and_giving_back_are_all_or_nothing() -> None:
    async with (
        open_rig(limits=InstanceLimits(max_pages=4)) as rig,
        rig.open_client() as client,
    ):
        session = client.session
        session.alloc_kvpage(0, [0, 1])
        refusals: list[tuple[type[InferletError], Callable[[], None]]] = [
            (BadArgumentError, lambda: session.alloc_kvpage(0, [2, 1])),
            (BadArgumentError, lambda: session.alloc_kvpage(0, [2, 2])),
            (LimitError, lambda: session.alloc_kvpage(0, [2, 3, 4])),
            (LimitError, lambda: session.fork_kvpage(0, [0, 0, 0], [2, 3, 4])),
            (BadArgumentError, lambda: session.fork_kvpage(0, [0, 1], [2])),
            (BadArgumentError, lambda: session.fork_kvpage(0, [0], [1])),
            (UnknownHandleError, lambda: session.fork_kvpage(0, [0, 9], [2, 3])),
            (UnknownHandleError, lambda: session.dealloc_kvpage(0, [0, 9])),
            (BadArgumentError, lambda: session.dealloc_kvpage(0, [0, 0])),
            (UnknownHandleError, lambda: session.alloc_kvpage(9, [2])),
        ]
        for error, call in refusals:
            with pytest.raises(error):
                call()
            assert list(session.pages["fake"]) == [0, 1]
            assert rig.pool.num_virtual == 2
        session.fork_kvpage(0, [0, 0], [2, 3])
        assert rig.pool.num_virtual == 2


async def test_a_page_lives_until_its_last_number_is_given_back() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        await client.run(PROMPT[:3], pages=[0])
        client.session.fork_kvpage(0, [0], [1])
        client.session.dealloc_kvpage(0, [0])
        token = await client.run(PROMPT[3:4], pages=[1], start=3)
        assert [token] == fake_continuation(PROMPT[:4], 1)
        client.session.dealloc_kvpage(0, [1])
        assert rig.pool.num_virtual == 0


def test_the_page_size_is_what_these_tests_assume() -> None:
    assert (PAGE_SIZE, LENGTH) == (4, 10)
