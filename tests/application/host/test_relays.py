"""Streams whose text goes to the client without their inferlet."""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.config import InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    CancelledError,
    EngineError,
    LimitError,
    UnknownHandleError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import Client, open_rig
from tests.application.host.test_decode import (
    COUNT,
    PROMPT,
    STEP_BY_STEP,
    alloc,
    read,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

EXPECTED = fake_continuation(PROMPT, COUNT)
TEXT = bytes(t for t in EXPECTED if t < 256).decode(errors="replace")


async def take(client: Client, ticket: int) -> Any:
    return await client.resolve(client.session.take_chunk(ticket))


async def received(client: Client) -> Sequence[str | bytes]:
    return await client.session.outbox.take()


async def test_the_client_gets_the_text_and_the_program_the_tokens_at_the_end() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        ticket = client.session.relay_stream(1, None)
        tokens, text, logprobs, finish, written = await take(client, ticket)
        assert (tokens, text, logprobs, finish) == (EXPECTED, TEXT, [], "length")
        assert written == len(PROMPT) + COUNT - 1
        messages = await received(client)
        assert "".join(map(str, messages)) == TEXT
        assert all(messages)
        assert rig.engine.batch_sizes == [1] * COUNT
        client.session.close_stream(1)


async def test_what_is_collected_comes_at_the_end_and_goes_to_nobody() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_unread=3)
        ticket = client.session.collect_stream(1)
        with pytest.raises(BadArgumentError, match="there is a ticket already"):
            client.session.read_stream(1)
        tokens, text, logprobs, finish, written = await take(client, ticket)
        assert (tokens, text, logprobs, finish) == (EXPECTED, TEXT, [], "length")
        assert written == len(PROMPT) + COUNT - 1
        client.session.outbox.put("nothing else")
        assert await received(client) == ["nothing else"]
        client.session.close_stream(1)


async def test_what_was_collected_until_it_was_given_up_is_there() -> None:
    async with (
        open_rig(control=STEP_BY_STEP, gated=True) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        ticket = client.session.collect_stream(1)
        for step in range(5):
            await rig.gate.wait_started(step + 1)
            rig.gate.let_go()
        await rig.gate.wait_started(6)
        client.session.cancel(ticket)
        tokens, *_ = client.session.end_relay(1)
        assert tokens == EXPECTED[:5]
        rig.gate.open()
        assert (await read(client))[0]


async def test_each_piece_is_sent_when_it_was_sampled() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        client.session.relay_stream(1, None)
        told, known = list[Any](), ""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")

        def note(message: str | bytes) -> bool:
            told.append(message)
            return True

        client.session.outbox.pass_on(note)
        for step in range(COUNT):
            await rig.gate.wait_started(step + 1)
            await wait_all_tasks_blocked()
            assert "".join(told) == known, step
            rig.gate.let_go()
            token = EXPECTED[step]
            known += decoder.decode(bytes([token] if token < 256 else []))


async def test_an_envelope_makes_bytes_of_json() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        ticket = client.session.relay_stream(1, ('{"choice": 3, "text": ', "}"))
        await take(client, ticket)
        found = [json.loads(message) for message in await received(client)]
        assert "".join(one["text"] for one in found) == TEXT
        assert {one["choice"] for one in found} == {3}


async def test_a_stream_waits_for_a_client_that_does_not_read() -> None:
    limits = InstanceLimits(max_unread=2)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        alloc(client)
        start(client, max_unread=3)
        stream, *_ = client.session.decoding.streams.get(1)
        ticket = client.session.relay_stream(1, None)
        while not stream.is_paused:
            await trio.lowlevel.checkpoint()
        assert rig.engine.batch_sizes == [1] * len(rig.engine.batch_sizes)
        assert len(rig.engine.batch_sizes) < COUNT
        told = ""

        async def read_all() -> None:
            nonlocal told
            while told != TEXT:
                told += "".join(map(str, await received(client)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all)
            tokens, *_ = await take(client, ticket)
        assert tokens == EXPECTED


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_relay_that_is_ended_gives_what_came_and_another_goes_on(
    is_cancelled: bool,
) -> None:
    async with (
        open_rig(control=STEP_BY_STEP, gated=True) as rig,
        rig.open_client() as client,
    ):
        alloc(client)
        start(client)
        ticket = client.session.relay_stream(1, None)
        for step in range(5):
            await rig.gate.wait_started(step + 1)
            rig.gate.let_go()
        await rig.gate.wait_started(6)
        if is_cancelled:
            client.session.cancel(ticket)
        tokens, text, _, finish, written = client.session.end_relay(1)
        assert (tokens, finish) == (EXPECTED[:5], None)
        assert written == len(PROMPT) + 4
        if not is_cancelled:
            assert (await take(client, ticket))[:2] == ([], "")
        for _ in range(COUNT):
            rig.gate.let_go()
        while True:
            chunk = await read(client)
            tokens, text = tokens + chunk[0], text + chunk[1]
            if chunk[3] is not None:
                break
        assert (tokens, text) == (EXPECTED, TEXT)
        told = "".join(map(str, await received(client)))
        assert TEXT.startswith(told)
        with pytest.raises(BadArgumentError, match="nothing relays decode stream 1"):
            client.session.end_relay(1)


async def test_an_error_comes_after_everything_before_it() -> None:
    failures = {4: EngineError("scripted")}
    async with open_rig(failures=failures) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        tokens, text, _, finish, _ = await take(
            client, client.session.relay_stream(1, None)
        )
        assert (tokens, finish) == (EXPECTED[:4], None)
        assert TEXT.startswith(text)
        with pytest.raises(EngineError, match="scripted"):
            await take(client, client.session.relay_stream(1, None))


async def test_nobody_else_reads_meanwhile() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        client.session.relay_stream(1, None)
        with pytest.raises(BadArgumentError, match="there is a ticket already"):
            client.session.read_stream(1)
        with pytest.raises(BadArgumentError, match="there is a ticket already"):
            client.session.relay_stream(1, None)
        with pytest.raises(UnknownHandleError):
            client.session.relay_stream(2, None)
        rig.gate.open()


async def test_what_it_keeps_is_counted_and_given_back() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        in_flight = client.session.in_flight
        start(client)
        before = in_flight.command_bytes
        ticket = client.session.relay_stream(1, ("x" * 1000, ""))
        assert in_flight.command_bytes >= before + 1000 + 96 * COUNT
        client.session.cancel(ticket)
        assert in_flight.command_bytes > before
        client.session.end_relay(1)
        assert in_flight.command_bytes == before
        in_flight.max_command_bytes = before + 100
        with pytest.raises(LimitError):
            client.session.relay_stream(1, None)
        rig.gate.open()


async def test_closing_the_stream_ends_the_relay() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        start(client)
        ticket = client.session.relay_stream(1, None)
        client.session.close_stream(1)
        with pytest.raises(CancelledError):
            await take(client, ticket)
        rig.gate.open()
