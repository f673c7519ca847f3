from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pie_trio.application.host.forward import MAX_TAILS
from pie_trio.config import InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    CancelledError,
    EngineError,
    LimitError,
    NotFoundError,
    UnknownHandleError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import open_rig
from tests.application.host.test_processors import create, forward, spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.application.host.clients import Client

PROMPT = b"abc"


def follow(
    client: Client, after: int, tokens: Sequence[int], pages: Sequence[int] = ()
) -> int:
    ticket: int = client.session.next_forward(
        after, np.array(list(tokens), np.int32), list(pages)
    )
    return ticket


async def take(client: Client, ticket: int) -> list[int]:
    tokens: list[int] = await client.resolve(client.session.take_tokens(ticket))
    return tokens


async def test_a_loop_that_follows_decodes_what_one_does_that_describes_each_forward() -> (
    None
):
    expected = fake_continuation(PROMPT, 9)
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        ticket = client.forward(PROMPT, pages=[0])
        found = await take(client, ticket)
        while len(found) < len(expected):
            new = [len(found)] if (len(PROMPT) + len(found)) % 4 == 1 else []
            client.session.alloc_kvpage(0, new)
            ticket = follow(client, ticket, found[-1:], new)
            found += await take(client, ticket)
    assert found == expected


async def test_a_forward_is_followed_before_it_has_run() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1])
        first = client.forward(PROMPT, pages=[0, 1])
        second = follow(client, first, b"xy")
        rig.gate.open()
        assert await take(client, second) == fake_continuation(PROMPT + b"xy", 1)
        assert await take(client, first) == fake_continuation(PROMPT, 1)


async def test_what_follows_a_failed_forward_fails_and_can_be_described_in_full() -> (
    None
):
    failures = {0: EngineError("scripted")}
    async with open_rig(failures=failures) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        first = client.forward(PROMPT, pages=[0])
        with pytest.raises(EngineError, match="scripted"):
            await take(client, first)
        second = follow(client, first, b"x")
        with pytest.raises(CancelledError):
            await take(client, second)
        assert [await client.run(PROMPT, pages=[0])] == fake_continuation(PROMPT, 1)


async def test_what_cannot_be_followed_says_so() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1])
        session.create_queue(1, "")
        with pytest.raises(NotFoundError, match="ticket 99 cannot be followed"):
            follow(client, 99, b"x")
        first = client.forward(PROMPT, pages=[0, 1])
        follow(client, first, b"x")
        with pytest.raises(NotFoundError, match="was followed already"):
            follow(client, first, b"y")
        several = client.forward(b"ab", pages=[0], outputs=[0, 1])
        with pytest.raises(NotFoundError, match="more than its last token"):
            follow(client, several, b"x")
        elsewhere = client.forward(b"ab", pages=[0], queue=1)
        session.destroy_queue(1)
        with pytest.raises(UnknownHandleError, match="queue 1"):
            follow(client, elsewhere, b"x")
        session.create_queue(1, "")
        with pytest.raises(NotFoundError, match="queue 1 was closed"):
            follow(client, elsewhere, b"x")


async def test_only_the_newest_can_be_followed() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        tickets = []
        for _ in range(MAX_TAILS + 1):
            tickets.append(client.forward(b"a", pages=[0]))
            await take(client, tickets[-1])
        with pytest.raises(NotFoundError):
            follow(client, tickets[0], b"x")
        for ticket in tickets[1:]:
            assert await take(client, follow(client, ticket, b"x")) == (
                fake_continuation(b"ax", 1)
            )
        assert len(client.session.forwards.tails) == MAX_TAILS


async def test_a_refused_one_changes_nothing_and_can_be_tried_again() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        ticket = client.forward(PROMPT, pages=[0])
        for tokens, message in ((b"xyz", "have only 4"), ([10**6], "vocabulary")):
            with pytest.raises(BadArgumentError, match=message):
                follow(client, ticket, tokens)
        with pytest.raises(BadArgumentError, match="at least one token"):
            follow(client, ticket, b"")
        with pytest.raises(UnknownHandleError):
            follow(client, ticket, b"x", [7])
        assert await take(client, follow(client, ticket, b"x")) == (
            fake_continuation(PROMPT + b"x", 1)
        )


async def test_one_that_follows_counts_as_a_command_in_flight() -> None:
    limits = InstanceLimits(max_in_flight=2)
    async with open_rig(limits=limits, gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1])
        second = follow(client, client.forward(PROMPT, pages=[0, 1]), b"x")
        with pytest.raises(LimitError):
            follow(client, second, b"y")
        rig.gate.open()


async def test_a_processor_belongs_to_what_follows_until_it_is_closed() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        await create(client, 5, spec(allowed=[33]))
        ticket = forward(client, 5, rows=[1])
        assert await take(client, ticket) == [33]
        ticket = follow(client, ticket, [33])
        assert await take(client, ticket) == [33]
        client.session.destroy_processor([5])
        with pytest.raises(UnknownHandleError, match="processor 5"):
            follow(client, ticket, [33])
        await create(client, 5, spec(allowed=[34]))
        with pytest.raises(NotFoundError, match="processor 5 was closed"):
            follow(client, ticket, [33])


async def test_tokens_alone_are_those_of_one_output() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        none = client.forward(b"a", pages=[0], outputs=[])
        with pytest.raises(BadArgumentError, match="one output"):
            await take(client, none)
        await client.resolve(client.session.take_forward(none))
        copy = client.session.copy_kvpage(0, 0, 0, 0, 1, 1)
        with pytest.raises(BadArgumentError, match="finish"):
            await take(client, copy)
        await client.resolve(client.session.finish(copy))
        other = client.session.receive()
        assert await client.session.inbox.put("a message")
        with pytest.raises(BadArgumentError, match="finish"):
            await take(client, other)
