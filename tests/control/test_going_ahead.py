"""Streams that are made ready for a token while the device samples it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.control.pages import UNBOUND, UNWRITTEN
from pie_trio.errors import EngineError
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, open_rig
from tests.application.host.test_decode import (
    COUNT,
    NUM_PAGES,
    PROMPT,
    alloc,
    read,
    read_all,
    read_until_error,
    start,
)

EXPECTED = fake_continuation(PROMPT, COUNT)
ALONE = ControlConfig(policy="eager", goes_ahead=True)


async def test_the_next_step_is_made_while_one_runs() -> None:
    async with open_rig(gated=True, control=ALONE) as rig, rig.open_client() as client:
        batcher = rig.models["fake"].batcher
        alloc(client)
        start(client)
        for number in range(1, COUNT):
            await rig.gate.wait_started(number)
            await wait_all_tasks_blocked()
            assert batcher.num_steps == number + 1
            rig.gate.let_go()
        rig.gate.open()
        tokens, _, finish = await read_all(client)
        assert (tokens, finish) == (EXPECTED, "length")
        assert rig.engine.batch_sizes == [1] * COUNT, "none is one too many"


async def test_without_going_ahead_it_is_made_once_the_token_is_known() -> None:
    control = replace(ALONE, goes_ahead=False)
    async with (
        open_rig(gated=True, control=control) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        for number in range(1, 4):
            await rig.gate.wait_started(number)
            await wait_all_tasks_blocked()
            assert rig.models["fake"].batcher.num_steps == number
            rig.gate.let_go()
        rig.gate.open()
        assert (await read_all(client))[0] == EXPECTED


@pytest.mark.parametrize("index", range(1, 12))
async def test_a_step_too_many_leaves_no_trace(index: int) -> None:
    """Wherever in its page the last token stands."""
    stop = EXPECTED[index]
    at = EXPECTED.index(stop) + 1
    async with open_rig(control=ALONE) as rig, rig.open_client() as client:
        alloc(client)
        start(client, stop_tokens=[stop])
        tokens, _, finish = await read_all(client)
        assert (tokens, finish) == (EXPECTED[:at], "stop-token")
        # The last token was not run, as far as anybody can tell.
        end = len(PROMPT) + at - 1
        _, table = client.session.page_table(0)
        pages = [table.get(handle) for handle in range(NUM_PAGES)]
        positions = rig.pool.positions[np.array(pages)].reshape(-1)
        assert positions[:end].tolist() == list(range(end))
        assert (positions[end:] == UNWRITTEN).all()
        num_full = -(-end // PAGE_SIZE)
        assert (rig.pool.physical[np.array(pages[num_full:])] == UNBOUND).all()
        # Another one takes its place, and what comes then is what comes after that.
        other = (stop + 1) % 256
        token = await client.run([other], pages=range(NUM_PAGES), start=end)
        assert [token] == fake_continuation([*PROMPT, *tokens[:-1], other], 1)
        assert len(rig.engine.batches) <= at + 2


async def test_who_has_read_the_end_has_room_for_another_command() -> None:
    """The end is told when the stream holds nothing any more, its place among the commands too."""
    limits = InstanceLimits(max_in_flight=1)
    async with (
        open_rig(gated=True, control=ALONE, limits=limits) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client, stop_tokens=[EXPECTED[0]])
        await rig.gate.wait_started(1)
        await wait_all_tasks_blocked()
        rig.gate.open()
        tokens = list[int]()
        while (chunk := await read(client))[3] is None:
            tokens += chunk[0]
        assert tokens + chunk[0] == EXPECTED[:1]
        assert (chunk[3], chunk[4]) == ("stop-token", len(PROMPT))
        client.session.close_stream(1)
        ticket = client.forward([7], pages=range(NUM_PAGES), start=len(PROMPT))
        assert await client.take(ticket) == fake_continuation([*PROMPT, 7], 1)


@pytest.mark.parametrize("goes_ahead", [True, False])
@pytest.mark.parametrize("end", ["close", "stop"])
async def test_who_leaves_a_stream_goes_on_with_other_tokens_at_once(
    goes_ahead: bool, end: str
) -> None:
    """The slot of the step on its way is theirs as soon as they have asked for it."""
    control = replace(ALONE, goes_ahead=goes_ahead)
    async with (
        open_rig(gated=True, control=control) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        await rig.gate.wait_started(1)
        await wait_all_tasks_blocked()
        rig.gate.let_go()
        await rig.gate.wait_started(2)
        await wait_all_tasks_blocked()
        if end == "close":
            client.session.close_stream(1)
        else:
            client.session.stop_stream(1)
        new = [7, 8, 9, 10]
        ticket = client.forward(new, pages=range(NUM_PAGES), start=len(PROMPT))
        await wait_all_tasks_blocked()
        rig.gate.open()
        assert await client.take(ticket) == fake_continuation([*PROMPT, *new], 1)
        at = len(PROMPT) + len(new)
        token = await client.run([11], pages=range(NUM_PAGES), start=at)
        assert [token] == fake_continuation([*PROMPT, *new, 11], 1)


async def test_an_adapter_is_in_use_as_long_as_a_step_runs_with_it() -> None:
    control = ControlConfig(policy="rendezvous:0.5,5", goes_ahead=True)
    async with (
        open_rig(gated=True, control=control) as rig,
        rig.open_client() as client,
    ):
        batcher = rig.models["fake"].batcher
        alloc(client)
        start(client)
        batcher.arrivals.expect("late")
        await rig.gate.wait_started(1)
        batcher.arrivals.expect("late")  # so that the next step is not made yet
        await wait_all_tasks_blocked()
        (stream, *_) = client.session.decoding.streams.get(1)
        assert stream.forward is not None
        stream.forward.adapter = "x"
        client.session.close_stream(1)
        is_used = batcher.uses_adapter("x")
        stream.forward.adapter = ""
        batcher.arrivals.forget()
        rig.gate.open()
        assert is_used


@pytest.mark.parametrize("goes_ahead", [True, False])
async def test_commands_that_wait_for_a_stream_are_counted_in_the_trace(
    goes_ahead: bool,
) -> None:
    control = replace(ALONE, goes_ahead=goes_ahead)
    async with (
        open_rig(gated=True, control=control) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client, max_tokens=6)
        at = len(PROMPT) + 5
        pages = range(NUM_PAGES)
        tickets = [client.forward([7], pages=pages, start=at + n) for n in range(2)]
        rig.gate.open()
        for ticket in tickets:
            await client.take(ticket)
        steps = rig.models["fake"].batcher.trace.steps
        assert [step.num_blocked for step in steps] == [2] * 6 + [1, 0]


async def test_the_pages_of_a_stream_that_is_closed_outlive_the_steps_on_their_way() -> (
    None
):
    async with open_rig(gated=True, control=ALONE) as rig:
        async with rig.open_client() as client:
            alloc(client)
            start(client)
            await rig.gate.wait_started(1)
            await wait_all_tasks_blocked()
            client.session.close_stream(1)
            client.session.dealloc_kvpage(0, list(range(NUM_PAGES)))
            assert rig.pool.num_free < rig.pool.num_pages
            rig.gate.open()
        assert len(rig.engine.batches) <= 2


@pytest.mark.parametrize("step", range(5))
async def test_a_failed_step_is_told_once_and_the_next_one_not_at_all(
    step: int,
) -> None:
    failures = {step: EngineError("scripted")}
    async with (
        open_rig(failures=failures, control=ALONE) as rig,
        rig.open_client() as client,
        rig.open_client("other") as other,
    ):
        alloc(client)
        start(client)
        tokens = list[int]()
        with pytest.raises(EngineError, match="scripted"):
            await read_until_error(client, tokens)
        assert tokens == EXPECTED[:step]
        # The slot that was to be written is a hole, and can be written again.
        token = (EXPECTED if step else PROMPT)[step - 1]
        alloc(other)
        assert [await other.run(PROMPT, pages=range(NUM_PAGES))] == EXPECTED[:1]
        again = [token] if step else PROMPT
        at = len(PROMPT) + step - 1 if step else 0
        found = await client.run(again, pages=range(NUM_PAGES), start=at)
        assert found == EXPECTED[step]


async def test_one_that_fails_alone_does_not_harm_those_that_go_ahead_beside_it() -> (
    None
):
    async with open_rig(control=ControlConfig(goes_ahead=True)) as rig:
        engine = rig.engine
        engine._broken_token_ids = np.array([EXPECTED[4]], np.int32)
        others = [
            p for p in range(60, 90) if EXPECTED[4] not in fake_continuation([p], COUNT)
        ]
        assert EXPECTED[4] not in EXPECTED[:4]

        async def stream(token: int) -> None:
            async with rig.open_client(f"s{token}") as client:
                alloc(client, count=4)
                start(client, tokens=[token], pages=range(4), max_tokens=10)
                found, _, _ = await read_all(client)
                assert found == fake_continuation([token], 10)

        async with rig.open_client() as client, trio.open_nursery() as nursery:
            alloc(client)
            start(client)
            for token in others[:8]:
                nursery.start_soon(stream, token)
            tokens = list[int]()
            with pytest.raises(EngineError, match="finite"):
                await read_until_error(client, tokens)
            assert tokens == EXPECTED[:5]


async def test_who_steps_is_part_of_every_step() -> None:
    control = ControlConfig(policy="rendezvous:0.5,5", goes_ahead=True)
    async with (
        open_rig(control=control, gated=True) as rig,
        rig.open_client() as streaming,
        rig.open_client("stepping") as stepping,
    ):
        alloc(streaming)
        pages = alloc(stepping)
        start(streaming, max_tokens=8)
        ticket = stepping.forward([1], pages=pages)
        rig.gate.open()
        found = await stepping.take(ticket)
        for at in range(1, 8):
            found += [await stepping.run(found[-1:], pages=pages, start=at)]
        assert found == fake_continuation([1], 8)
        assert (await read_all(streaming))[0] == EXPECTED[:8]
        assert len(rig.engine.batches) <= 8 + 2


async def test_slots_that_held_something_are_not_lost_by_a_step_too_many() -> None:
    """A stream that runs over an older continuation stops before its end."""
    found: list[list[int]] = []
    for goes_ahead in (True, False):
        control = replace(ALONE, goes_ahead=goes_ahead)
        async with open_rig(control=control) as rig, rig.open_client() as client:
            alloc(client)
            await client.run([*PROMPT, *range(10, 22)], pages=range(NUM_PAGES))
            start(client, stop_tokens=[EXPECTED[2]])
            await read_all(client)
            _, table = client.session.page_table(0)
            pages = [table.get(handle) for handle in range(NUM_PAGES)]
            found.append(rig.pool.positions[np.array(pages)].reshape(-1).tolist())
            last = len(PROMPT) + 12
            token = await client.run([9], pages=range(NUM_PAGES), start=last)
            found[-1].append(token)
    assert found[0] == found[1]
