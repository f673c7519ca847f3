"""Random interleavings of streams and steps give the tokens of the naive loop."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.masks import infer_mask
from pie_trio.control.stream_rows import StreamRows
from pie_trio.errors import CancelledError
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import Client, open_rig
from tests.application.host.test_decode import GREEDY, read, start

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

NUM_PAGES = 12  # of each context: more than the programs fill


@dataclass(frozen=True)
class Act:
    """Something to do with one of the contexts.

    Attributes:
        kind: ``step`` runs the last token; ``stream`` reads a stream to its end; ``stop`` reads
            some chunks and stops it; ``close`` closes it at once, ``fork`` forks it and reads
            both; ``share`` shares its pages, ``branch`` does so while it streams.
    """

    kind: Literal["step", "stream", "stop", "close", "fork", "share", "branch"]
    context: int
    count: int
    max_unread: int


ACTS = st.lists(
    st.builds(
        Act,
        kind=st.sampled_from(
            ["step", "stream", "stop", "close", "fork", "share", "branch"]
        ),
        context=st.integers(0, 3),
        count=st.integers(1, 6),
        max_unread=st.integers(1, 5),
    ),
    min_size=1,
    max_size=8,
)


class Contexts:
    """Contexts of a client; each must go on as the naive loop says."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.tokens: list[list[int]] = []
        self.pages: list[list[int]] = []
        self._next = 0

    def add(self, tokens: list[int], pages: list[int]) -> None:
        self.tokens.append(tokens)
        self.pages.append(pages)

    def numbers(self) -> list[int]:
        self._next += NUM_PAGES
        return list(range(self._next - NUM_PAGES, self._next))

    async def act(self, act: Act) -> None:
        client, session = self.client, self.client.session
        index = act.context % len(self.tokens)
        tokens, pages = self.tokens[index], self.pages[index]
        if len(tokens) + act.count > 40:
            return
        last = len(tokens) - 1
        if act.kind == "step":
            token = await client.run(tokens[last:], pages=pages, start=last)
            self.check(tokens, [token])
            return
        if act.kind == "share":
            shared = self.numbers()
            session.fork_kvpage(0, pages, shared)
            self.add(list(tokens), shared)
            return
        start(
            client,
            tokens=tokens[last:],
            first=last,
            pages=pages,
            max_tokens=act.count,
            max_unread=act.max_unread,
        )
        found = list((await read(client))[0])
        if act.kind == "stop":
            session.stop_stream(1)
        if act.kind == "branch":
            shared = self.numbers()
            session.fork_kvpage(0, pages, shared)
            self.add([*tokens, *found], shared)
        if act.kind == "fork" and len(found) < act.count:
            await self.fork(tokens, found)
        if act.kind != "close":
            while session.decoding.streams.get(1)[0].has_ended is False:
                found += (await read(client))[0]
        session.close_stream(1)
        self.check(tokens, found)

    async def fork(self, tokens: list[int], found: list[int]) -> None:
        session, pages = self.client.session, self.numbers()
        try:
            ticket = session.fork_stream(1, 2, pages, GREEDY)
            await self.client.resolve(session.finish(ticket))
        except Exception as error:  # noqa: BLE001 - it may have ended
            assert "ended" in str(error)
            return
        chunk = await read(self.client, 2)
        num_shared = chunk[4] - len(chunk[0]) + 1 - len(tokens)
        sampled = list(chunk[0])
        while not session.decoding.streams.get(2)[0].has_ended:
            sampled += (await read(self.client, 2))[0]
        session.close_stream(2)
        base = [*tokens, *fake_continuation(tokens, num_shared)]
        self.check(base, sampled)
        self.add(base, pages)

    @staticmethod
    def check(tokens: list[int], found: list[int]) -> None:
        assert found == fake_continuation(tokens, len(found))
        tokens += found


@asynccontextmanager
async def open_contexts() -> AsyncGenerator[Contexts]:
    async with open_rig(num_pages=512) as rig, rig.open_client() as client:
        contexts = Contexts(client)
        pages = contexts.numbers()
        client.session.alloc_kvpage(0, pages)
        prompt = [256, *b"ab"]
        token = await client.run(prompt, pages=pages)
        contexts.add([*prompt, token], pages)
        yield contexts


@given(ACTS)
async def test_streams_and_steps_in_any_order_give_the_tokens_of_the_naive_loop(
    acts: list[Act],
) -> None:
    async with open_contexts() as contexts:
        for act in acts:
            await contexts.act(act)


@given(ACTS, ACTS)
async def test_so_do_several_inferlets_side_by_side(
    first: list[Act], second: list[Act]
) -> None:
    async with open_rig(num_pages=512) as rig:

        async def run(name: str, acts: list[Act]) -> None:
            async with rig.open_client(name) as client:
                contexts = Contexts(client)
                pages = contexts.numbers()
                client.session.alloc_kvpage(0, pages)
                token = await client.run([256], pages=pages)
                contexts.add([256, token], pages)
                for act in acts:
                    await contexts.act(act)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "one", first)
            nursery.start_soon(run, "two", second)


@given(
    st.lists(st.integers(-1, 12), min_size=1, max_size=8),
    st.integers(0, 8),
    st.none() | st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_the_mask_of_each_token_is_that_of_a_forward(
    slots: list[int], position: int, hidden: list[bool] | None
) -> None:
    mask = None if hidden is None or not any(hidden) else np.array(hidden)
    rows = StreamRows(np.array(slots, np.int32), position, mask, max_slots=16)
    written = list(slots)
    for step in range(6):
        written.append(position + step)
        expected = infer_mask(
            np.array(written[:-1], np.int32),
            np.array([position + step], np.int32),
            mask,
        )
        row = rows.next_row(len(written) - 1, position + step)
        if expected is None:
            expected = np.ones((1, len(written)), np.bool_)
        if row is None:
            row = np.ones((1, len(written)), np.bool_)
        assert row.tolist() == expected.tolist()


async def test_a_stream_without_a_reader_does_not_hold_the_end_of_its_model() -> None:
    async with open_contexts() as contexts:
        client = contexts.client
        start(client, pages=contexts.pages[0], max_unread=1)
        ticket = client.session.read_stream(1)
        await client.resolve(client.session.take_chunk(ticket))
        waiting = client.session.read_stream(1)
        client.session.close_stream(1)
        with pytest.raises(CancelledError):
            await client.resolve(client.session.take_chunk(waiting))
