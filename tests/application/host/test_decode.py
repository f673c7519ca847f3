"""Decode streams through a session: as many tokens as asked for, and everything back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    CancelledError,
    EngineError,
    LimitError,
    OutOfPagesError,
    UnknownHandleError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, Client, Rig, open_rig
from tests.control.engines import TIME_LIMIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PROMPT = [256, *b"abc"]
GREEDY = (0.0, 0, 1.0, 0.0, 0, 0, None)
COUNT = 20
NUM_PAGES = 8
STEP_BY_STEP = ControlConfig(goes_ahead=False)
"""Where a test counts steps; tests/control/test_going_ahead.py has the others."""


def start(
    client: Client,
    stream: int = 1,
    *,
    tokens: Sequence[int] = PROMPT,
    pages: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    first: int = 0,
    sampler: Any = GREEDY,
    max_tokens: int = COUNT,
    stop_tokens: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
    logprobs: bool = False,
    max_unread: int = 1000,
) -> None:
    if pages is None:
        pages = range(NUM_PAGES)
    if positions is None:
        positions = range(first, first + len(tokens))
    client.session.start_stream(
        0,
        stream,
        (
            np.array(tokens, np.int32),
            np.array(positions, np.int32),
            list(pages),
            first,
            sampler,
            max_tokens,
            list(stop_tokens),
            list(stop_texts),
            logprobs,
            max_unread,
            "",
        ),
    )


async def wait_paused(client: Client, stream: int = 1) -> None:
    """Wait until a stream waits for its reader."""
    found, *_ = client.session.decoding.streams.get(stream)
    while not found.is_paused:
        await trio.lowlevel.checkpoint()


async def read(client: Client, stream: int = 1) -> Any:
    ticket = client.session.read_stream(stream)
    return await client.resolve(client.session.take_chunk(ticket))


async def read_until_error(client: Client, tokens: list[int]) -> None:
    """Append what can be read of stream 1, for ever."""
    while True:
        chunk = await read(client)
        assert chunk[3] is None
        tokens += chunk[0]


async def read_all(client: Client, stream: int = 1) -> tuple[list[int], str, str]:
    """Return the tokens, the text and why it ended; then close it."""
    tokens, texts = list[int](), list[str]()
    while True:
        chunk = await read(client, stream)
        tokens += chunk[0]
        texts.append(chunk[1])
        if chunk[3] is not None:
            client.session.close_stream(stream)
            return tokens, "".join(texts), chunk[3]


def alloc(client: Client, first: int = 0, count: int = NUM_PAGES) -> list[int]:
    pages = list(range(first, first + count))
    client.session.alloc_kvpage(0, pages)
    return pages


async def test_a_stream_samples_what_stepping_does() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        tokens, text, finish = await read_all(client)
        assert tokens == fake_continuation(PROMPT, COUNT)
        assert text == bytes(t for t in tokens if t < 256).decode(errors="replace")
        assert finish == "length"
        assert rig.engine.batch_sizes == [1] * COUNT
        with pytest.raises(UnknownHandleError):
            client.session.read_stream(1)


async def test_a_draw_depends_on_seed_and_position_alone() -> None:
    sampler = (1.0, 0, 0.9, 0.0, 7)
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, sampler=(*sampler, 0, None))
        streamed, _, _ = await read_all(client)
        alloc(client, NUM_PAGES)
        pages = range(NUM_PAGES, 2 * NUM_PAGES)
        tokens, found = PROMPT, list[int]()
        for _ in range(COUNT):
            at = len(PROMPT) + len(found) - 1 if found else 0
            tokens = [await client.run(tokens, pages=pages, start=at, sampler=sampler)]
            found += tokens
        assert streamed == found


async def test_pages_take_no_memory_before_they_are_reached() -> None:
    async with (
        open_rig(control=STEP_BY_STEP, gated=True) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        used = list[int]()
        for step in range(COUNT):
            await rig.gate.wait_started(step + 1)
            used.append(rig.pool.num_pages - rig.pool.num_free)
            rig.gate.let_go()
        lengths = [len(PROMPT) + step for step in range(COUNT)]
        assert used == [-(-length // PAGE_SIZE) for length in lengths]
        await read_all(client)


async def test_a_stop_token_is_returned_and_not_run() -> None:
    expected = fake_continuation(PROMPT, COUNT)
    async with open_rig(control=STEP_BY_STEP) as rig, rig.open_client() as client:
        alloc(client)
        start(client, stop_tokens=[expected[5]])
        at = expected.index(expected[5]) + 1
        tokens, _, finish = await read_all(client)
        assert (tokens, finish) == (expected[:at], "stop-token")
        assert rig.engine.batch_sizes == [1] * at


async def test_a_stop_text_ends_the_text_before_it() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        _, whole, _ = await read_all(client)
        stop = whole[4:7]
        start(client, stop_texts=["not there", stop])
        _, text, finish = await read_all(client)
        assert (text, finish) == (whole[: whole.index(stop)], "stop-text")


async def test_log_probabilities_are_those_of_the_tokens() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, logprobs=True, max_tokens=3)
        logprobs = list[float]()
        while len(logprobs) < 3:
            chunk = await read(client)
            assert len(chunk[0]) == len(chunk[2])
            logprobs += chunk[2]
        assert all(value < 0 for value in logprobs)


async def test_a_stream_waits_for_its_reader_alone() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_unread=3)
        await wait_paused(client)
        async with rig.open_client("test-2") as other:
            alloc(other)
            start(other)
            assert (await read_all(other))[0] == fake_continuation(PROMPT, COUNT)
        chunk = await read(client)
        assert len(chunk[0]) == 3
        assert chunk[4] == len(PROMPT) + 2
        rest, _, _ = await read_all(client)
        assert [*chunk[0], *rest] == fake_continuation(PROMPT, COUNT)


async def test_a_stopped_stream_gives_what_it_has() -> None:
    async with (
        open_rig(control=STEP_BY_STEP, gated=True) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        for step in (1, 2):
            await rig.gate.wait_started(step)
            rig.gate.let_go()
        await rig.gate.wait_started(3)
        client.session.stop_stream(1)
        rig.gate.open()
        tokens, _, finish = await read_all(client)
        assert (tokens, finish) == (fake_continuation(PROMPT, 3), "stopped")
        assert rig.engine.batch_sizes == [1] * 3
        # And the context goes on where it was.
        token = await client.run(tokens[-1:], pages=range(NUM_PAGES), start=6)
        assert [token] == fake_continuation([*PROMPT, *tokens], 1)


async def test_a_stream_that_waits_for_its_reader_or_others_can_be_stopped() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        start(client)
        client.session.stop_stream(1)
        rig.gate.open()
        assert await read_all(client) == ([], "", "stopped")
        start(client, max_unread=2)
        await wait_paused(client)
        client.session.stop_stream(1)
        tokens, _, finish = await read_all(client)
        assert (tokens, finish) == (fake_continuation(PROMPT, 2), "stopped")


async def test_commands_on_its_pages_wait_for_the_end() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_tokens=5, max_unread=2)
        ticket = client.forward(b"xyz", pages=range(NUM_PAGES))
        await wait_paused(client)
        assert rig.engine.batch_sizes == [1] * 2
        assert (await read_all(client))[0] == fake_continuation(PROMPT, 5)
        assert await client.take(ticket) == fake_continuation(b"xyz", 1)
        assert rig.engine.batch_sizes == [1] * 6


async def test_closing_frees_the_pages_for_who_waits() -> None:
    async with (
        open_rig(control=STEP_BY_STEP, gated=True) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        await rig.gate.wait_started(1)
        waiting = client.session.read_stream(1)
        ticket = client.forward(PROMPT, pages=range(NUM_PAGES))
        client.session.close_stream(1)
        with pytest.raises(CancelledError, match="closed"):
            client.session.take_chunk(waiting)
        rig.gate.open()
        assert await client.take(ticket) == fake_continuation(PROMPT, 1)
        assert rig.engine.batch_sizes == [1, 1]


async def test_an_error_comes_once_after_everything_before_it() -> None:
    failures = {3: EngineError("scripted")}
    async with open_rig(failures=failures) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        tokens = list[int]()
        with pytest.raises(EngineError, match="scripted"):
            await read_until_error(client, tokens)
        assert tokens == fake_continuation(PROMPT, 3)
        with pytest.raises(BadArgumentError, match="read to its end"):
            client.session.read_stream(1)
        client.session.close_stream(1)


async def test_a_stream_that_outgrows_the_memory_fails() -> None:
    async with open_rig(num_pages=3) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        tokens = list[int]()
        with pytest.raises(OutOfPagesError):
            await read_until_error(client, tokens)
        assert tokens == fake_continuation(PROMPT, 3 * PAGE_SIZE - len(PROMPT) + 1)
        client.session.close_stream(1)


@pytest.mark.parametrize("num_first", [1, 3, 4, 5])
@pytest.mark.parametrize("is_paused", [False, True])
async def test_a_fork_goes_on_by_itself(num_first: int, is_paused: bool) -> None:
    other = (1.0, 0, 1.0, 0.0, 3)
    async with (
        open_rig(control=STEP_BY_STEP, gated=not is_paused) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client, max_unread=num_first if is_paused else 1000)
        if is_paused:
            await wait_paused(client)
        else:
            for step in range(1, num_first):
                await rig.gate.wait_started(step)
                rig.gate.let_go()
            await rig.gate.wait_started(num_first)
        pages = list(range(20, 20 + NUM_PAGES))
        forked = client.session.fork_stream(1, 2, pages, (*other, 0, None))
        rig.gate.open()
        await client.resolve(client.session.finish(forked))
        found, _, _ = await read_all(client, 2)
        tokens, _, _ = await read_all(client)
        assert tokens == fake_continuation(PROMPT, COUNT)
        assert len(found) == COUNT - num_first
        # The same by hand.
        alloc(client, 40)
        context = [*PROMPT, *tokens[:num_first]]
        new, at = context, 0
        for token in found:
            answer = await client.run(
                new, pages=range(40, 40 + NUM_PAGES), start=at, sampler=other
            )
            assert answer == token
            at, new = at + len(new), [token]
        client.session.dealloc_kvpage(0, pages)


async def test_a_fork_of_what_has_ended_is_refused() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_tokens=1, pages=[0])
        pages = [20]
        late = client.session.fork_stream(1, 2, pages, GREEDY)
        rig.gate.open()
        with pytest.raises(BadArgumentError, match="ended"):
            await client.resolve(client.session.finish(late))
        with pytest.raises(BadArgumentError, match="ended"):
            client.session.fork_stream(1, 2, pages, GREEDY)
        with pytest.raises(BadArgumentError, match="1 pages"):
            client.session.fork_stream(1, 2, [*pages, 30], GREEDY)


async def test_pages_that_others_share_are_copied_before_they_are_written() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        await client.run(PROMPT[:2], pages=[0])
        client.session.fork_kvpage(0, [0, 1, 2], [20, 21, 22])
        start(client, tokens=PROMPT[2:], first=2)
        start(client, 2, tokens=PROMPT[2:], first=2, pages=[20, 21, 22], max_tokens=9)
        expected = fake_continuation(PROMPT, COUNT)
        assert (await read_all(client))[0] == expected
        assert (await read_all(client, 2))[0] == expected[:9]


async def test_pages_that_are_shared_while_it_runs_are_copied_too() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        expected = fake_continuation(PROMPT, COUNT)
        start(client, max_unread=3)
        found, forks = list[int](), 0
        while len(found) < COUNT:
            pages = list(range(20, 20 + NUM_PAGES))
            client.session.fork_kvpage(0, range(NUM_PAGES), pages)
            found += (await read(client))[0]
            client.session.dealloc_kvpage(0, pages)
            forks += 1
        assert found == expected
        assert forks > 5
        client.session.close_stream(1)
        # The stream's own handles show what it wrote.
        at = len(PROMPT) + COUNT - 1
        token = await client.run(found[-1:], pages=range(NUM_PAGES), start=at)
        assert [token] == fake_continuation([*PROMPT, *found], 1)


async def test_pages_that_were_given_back_stay_until_it_ends() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_unread=2)
        client.session.dealloc_kvpage(0, list(range(NUM_PAGES)))
        assert (await read_all(client))[0] == fake_continuation(PROMPT, COUNT)
        assert rig.pool.num_virtual == 0


async def test_hidden_slots_and_gaps_are_those_of_a_forward() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        results = list[list[int]]()
        for first in (0, NUM_PAGES):
            pages = alloc(client, first)
            # Slots 0 to 5, one of them later than what follows, and slot 6 is left out.
            await client.run(b"abcdef", pages=pages, positions=[0, 1, 2, 12, 4, 5])
            hidden = [False, True, False, True]
            for page in pages[:3]:
                client.session.mask_kvpage(0, page, hidden)
            if first:
                start(
                    client, tokens=list(b"gh"), positions=[8, 9], first=7, pages=pages
                )
                results.append((await read_all(client))[0])
                continue
            tokens, found, at, position = list(b"gh"), list[int](), 7, 8
            for _ in range(COUNT):
                count = len(tokens)
                token = await client.run(
                    tokens,
                    pages=pages,
                    start=at,
                    positions=range(position, position + count),
                )
                at, position, tokens = at + count, position + count, [token]
                found.append(token)
            results.append(found)
        assert results[0] == results[1]


async def test_many_streams_and_guests_that_step_share_their_batches() -> None:
    num_streams, num_steppers, num_tokens = 64, 8, 12
    control = ControlConfig(policy=f"rendezvous:0.5,{TIME_LIMIT_SECONDS}")

    async def stream(rig: Rig, number: int, ready: trio.Event) -> None:
        async with rig.open_client(f"s{number}") as client:
            alloc(client)
            await ready.wait()
            start(client, tokens=[number], max_tokens=num_tokens)
            assert (await read_all(client))[0] == fake_continuation(
                [number], num_tokens
            )

    async def step(rig: Rig, number: int, ready: trio.Event) -> None:
        async with rig.open_client(f"g{number}") as client:
            pages = alloc(client)
            await ready.wait()
            tokens, found = [number], list[int]()
            for at in range(num_tokens):
                tokens = [await client.run(tokens, pages=pages, start=at)]
                found += tokens
            assert found == fake_continuation([number], num_tokens)

    async with open_rig(control=control, gated=True, num_pages=1024) as rig:
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(num_streams):
                nursery.start_soon(stream, rig, number, ready)
            for number in range(num_steppers):
                nursery.start_soon(step, rig, number, ready)
            await wait_all_tasks_blocked()
            ready.set()
            await wait_all_tasks_blocked()
            rig.gate.open()
        assert rig.engine.batch_sizes == [num_streams + num_steppers] * num_tokens


@pytest.mark.parametrize(
    ("details", "error", "message"),
    [
        ({"tokens": []}, BadArgumentError, "at least one token"),
        ({"tokens": [999]}, BadArgumentError, "vocabulary"),
        ({"positions": [1]}, BadArgumentError, "needs a position"),
        ({"max_tokens": 0}, BadArgumentError, "max_tokens is at least 1"),
        ({"max_unread": 0}, BadArgumentError, "max_unread is at least 1"),
        ({"max_tokens": 30}, BadArgumentError, "allocate and name more pages"),
        ({"max_tokens": 2**31}, LimitError, "may have"),
        ({"pages": [0, 0]}, BadArgumentError, "allocate|twice"),
        ({"pages": [*range(7), 99]}, UnknownHandleError, "page 99"),
        ({"positions": [0, 1, 2, 2**31 - 10]}, BadArgumentError, "largest position"),
        ({"sampler": (-1.0, 0, 1.0, 0.0, 0, 0, None)}, BadArgumentError, "temperature"),
        ({"stop_texts": ["x"] * 65}, LimitError, "stop texts"),
        ({"stop_texts": ["x" * 5000]}, LimitError, "stop texts"),
    ],
)
async def test_a_wrong_request_is_refused_and_changes_nothing(
    details: dict[str, Any], error: type[Exception], message: str
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        with pytest.raises(error, match=message):
            start(client, **details)
        assert rig.models["fake"].batcher.num_unfinished == 0
        assert (rig.pool.positions < 0).all()


async def test_numbers_and_tickets_are_checked() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        with pytest.raises(BadArgumentError, match="in use"):
            start(client)
        ticket = client.session.read_stream(1)
        with pytest.raises(BadArgumentError, match="a ticket already"):
            client.session.read_stream(1)
        client.session.cancel(ticket)
        other = client.session.synchronize(0)
        for call in ("read_stream", "stop_stream", "close_stream"):
            with pytest.raises(UnknownHandleError):
                getattr(client.session, call)(2)
        client.session.close_stream(1)
        rig.gate.open()
        await client.resolve(client.session.wait([other], None))
        with pytest.raises(BadArgumentError, match="not a decode stream's"):
            client.session.take_chunk(other)


async def test_what_there_is_to_read_has_one_ticket_until_it_is_taken() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        ticket = client.session.read_stream(1)
        await client.resolve(client.session.wait([ticket], None))
        with pytest.raises(BadArgumentError, match="a ticket already"):
            client.session.read_stream(1)
        client.session.release(ticket)
        ticket = client.session.read_stream(1)
        chunk = await client.resolve(client.session.take_chunk(ticket))
        assert chunk[0] == fake_continuation(PROMPT, len(chunk[0]))
        assert chunk[0]


async def test_a_stream_whose_pages_were_given_back_is_not_forked() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_unread=12)
        rig.gate.open()
        await wait_paused(client)
        client.session.dealloc_kvpage(0, [1])
        ticket = client.session.fork_stream(
            1, 2, list(range(20, 20 + NUM_PAGES)), GREEDY
        )
        with pytest.raises(BadArgumentError, match="given back"):
            await client.resolve(client.session.finish(ticket))
        assert len(client.session.pages["fake"]) == NUM_PAGES - 1


async def test_streams_count_among_the_commands_of_an_inferlet() -> None:
    limits = InstanceLimits(max_in_flight=1)
    async with open_rig(limits=limits, gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        with pytest.raises(LimitError):
            start(client, 2)
        client.session.destroy_queue(0)
        rig.gate.open()
        with pytest.raises(CancelledError):
            await read_all(client)


NUM_PLACES = 6


async def use_streams(client: Client, reach: Callable[[int], None]) -> None:
    alloc(client)
    start(client, max_unread=3)
    reach(1)
    await read(client)
    forked = client.session.fork_stream(1, 2, list(range(20, 28)), GREEDY)
    reach(2)
    await client.resolve(client.session.finish(forked))
    reach(3)
    await read(client, 2)
    client.session.stop_stream(2)
    ticket = client.forward(b"x", pages=range(20, 28))
    reach(4)
    await client.take(ticket)
    reach(5)
    await read(client)
    ticket = client.forward(b"x", pages=range(NUM_PAGES))
    reach(6)
    await client.take(ticket)  # for ever: nobody reads any more


@pytest.mark.parametrize("place", range(1, NUM_PLACES + 1))
@pytest.mark.parametrize("is_at_once", [False, True], ids=["blocked", "at once"])
async def test_an_instance_with_streams_can_be_cancelled_at_each_wait(
    place: int, is_at_once: bool
) -> None:
    async with open_rig() as rig:
        reached, ended, scope = trio.Event(), trio.Event(), trio.CancelScope()

        def reach(found: int) -> None:
            if found == place:
                rig.gate.hold()
                reached.set()
                if is_at_once:
                    scope.cancel()

        async def run() -> None:
            async with rig.open_client() as client:
                with scope:
                    await use_streams(client, reach)
                    await trio.sleep_forever()
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await reached.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            rig.gate.open()
            await ended.wait()
        assert scope.cancelled_caught
        rig.check_all_free()


async def test_streams_end_together_with_their_model() -> None:
    with trio.CancelScope() as scope:
        async with open_rig(gated=True) as rig, rig.open_client() as client:
            alloc(client)
            start(client)
            await rig.gate.wait_started(1)
            rig.gate.let_go()
            scope.cancel()
    assert scope.cancelled_caught
    rig.check_all_free()


async def test_pages_that_are_reached_later_come_from_host_memory_when_there_is_room() -> (
    None
):
    none = np.zeros(0, np.uint8)
    async with (
        open_rig(num_pages=8) as rig,
        rig.open_client("a") as a,
        rig.open_client("b") as b,
    ):
        alloc(a, count=1)
        await a.run([1, 2], pages=[0])
        await a.resolve(a.session.finish(a.session.suspend_pages()))
        a.session.export_kvpage(0, [0], "x", True, ("owner", None), None, none)
        b.session.import_kvpage(0, "x", [100])
        for page in alloc(b):
            await b.run([1], pages=[page])
        assert rig.pool.num_free == 0
        assert len(rig.pool.swapped) == 1
        start(b, tokens=[3], pages=[7, 100], first=1, max_tokens=6)
        with trio.fail_after(TIME_LIMIT_SECONDS):
            # It fits only once there is room, and until then nothing is lost.
            found = list((await read(b))[0])
            b.session.dealloc_kvpage(0, [0, 1, 2])
            while len(found) < 6:
                found += (await read(b))[0]
        assert found == fake_continuation([1, 3], 6)


async def test_a_page_is_reached_that_was_the_source_of_a_copy() -> None:
    async with open_rig() as rig:
        async with rig.open_client() as client:
            alloc(client, count=1)
            await client.run([1, 2], pages=[0])
            client.session.fork_kvpage(0, [0], [1])
            start(client, tokens=[3], pages=[0, 1], first=2, max_tokens=4)
            assert (await read_all(client))[0] == fake_continuation([1, 2, 3], 4)
        rig.pool.check()
        assert rig.pool.num_free == rig.pool.num_pages


async def test_forks_that_wait_for_a_step_count_among_the_commands() -> None:
    limits = InstanceLimits(max_in_flight=4)
    async with (
        open_rig(limits=limits, gated=True) as rig,
        rig.open_client() as client,
    ):
        session = client.session
        alloc(client, count=2)
        start(client, pages=[0, 1], max_tokens=3)
        for target in (2, 3, 4):
            ticket = session.fork_stream(
                1, target, [10 * target, 10 * target + 1], GREEDY
            )
            session.release(ticket)
        with pytest.raises(LimitError):
            session.fork_stream(1, 5, [50, 51], GREEDY)
        assert session.in_flight.count == 4
        rig.gate.open()
        await read_all(client)
        for target in (2, 3, 4):
            await read_all(client, target)
        await wait_all_tasks_blocked()
        assert session.in_flight.count == 0


@pytest.mark.parametrize("is_given_back", [False, True])
async def test_a_page_that_is_shared_between_two_steps_is_not_written(
    is_given_back: bool,
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        pages = alloc(client)
        start(client, max_unread=2)
        await wait_paused(client)  # with 5 slots written: the second page has room
        shared = list(range(20, 20 + NUM_PAGES))
        client.session.fork_kvpage(0, pages, shared)
        if is_given_back:
            client.session.dealloc_kvpage(0, pages)
        page = client.session.pages["fake"].get(21)
        before = rig.pool.positions[page].tolist()
        assert -1 in before
        assert (await read_all(client))[0] == fake_continuation(PROMPT, COUNT)
        assert client.session.pages["fake"].get(21) == page
        assert rig.pool.positions[page].tolist() == before
        # What was shared goes on from where it was.
        first = fake_continuation(PROMPT, 2)
        token = await client.run(first[1:], pages=shared, start=len(PROMPT) + 1)
        assert [token] == fake_continuation([*PROMPT, *first], 1)
