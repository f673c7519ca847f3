"""Cancelling whoever waits for the model, at any moment, leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio

from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import Client, assert_is_closed, open_rig
from tests.application.host.test_decode import GREEDY, start
from tests.application.host.test_processors import spec

PROMPT = [256, *b"abc"]
PAGES = [0, 1, 2, 3, 4, 5, 6, 7]
INPUTS, OUTPUTS = [10, 11, 12, 13], [14]
Begin = Callable[[Client], Any]


def begin_embeds(client: Client) -> int:
    session = client.session
    session.alloc_emb(0, INPUTS + OUTPUTS)
    session.embed_txt(0, PROMPT, list(range(4)), INPUTS)
    ticket: int = session.forward(0, [], INPUTS, PAGES[:1], OUTPUTS, None)
    return ticket


def begin_dist(client: Client) -> Any:
    begin_embeds(client)
    return client.session.get_next_dist(0, OUTPUTS[0], 3)


def begin_project(client: Client) -> Any:
    begin_embeds(client)
    wanted = [(np.zeros(1, np.int32), None, 2, frozenset[str]())]
    return client.session.project(0, OUTPUTS, wanted)


def begin_copy(client: Client) -> Any:
    client.forward(PROMPT, pages=[0])
    return client.session.copy_kvpage(0, 0, 1, 0, 0, 4)


def begin_synchronize(client: Client) -> Any:
    client.forward(PROMPT, pages=[0])
    return client.session.synchronize(0)


def begin_stream(client: Client) -> Any:
    start(client)
    return client.session.read_stream(1)


def begin_relay(client: Client) -> Any:
    start(client)
    return client.session.relay_stream(1, None)


def begin_fork(client: Client) -> Any:
    start(client)
    return client.session.fork_stream(1, 2, list(range(20, 28)), GREEDY)


CALLS: dict[str, tuple[Begin, str]] = {
    "forward": (lambda c: c.forward(PROMPT, pages=[0]), "take_forward"),
    "forward of embeds": (begin_embeds, "take_forward"),
    "get-next-dist": (begin_dist, "take_forward"),
    "project": (begin_project, "take_forward"),
    "copy": (begin_copy, "finish"),
    "synchronize": (begin_synchronize, "finish"),
    "read-stream": (begin_stream, "take_chunk"),
    "relay-stream": (begin_relay, "take_chunk"),
    "fork-stream": (begin_fork, "finish"),
    "suspend": (lambda c: c.session.suspend_pages(), "finish"),
    "memory-pressure": (lambda c: c.session.memory_pressure(), "finish"),
    "create-processor": (
        lambda c: c.session.create_processor(1, "", spec(presence=1.0)),
        "finish",
    ),
}


@pytest.mark.parametrize("is_running", [False, True], ids=["at once", "in a step"])
@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("end", ["ticket", "instance"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_command_that_is_cancelled_gives_everything_back(
    name: str, end: str, num_steps: int, is_running: bool
) -> None:
    """Its pages, its embeds, its place in the order; and the others go on."""
    begin, take = CALLS[name]
    async with open_rig(gated=True) as rig, rig.open_client("other") as other:
        other.session.alloc_kvpage(0, [0])
        session = rig.make_session()
        session.create_queue(0, "")
        session.alloc_kvpage(0, PAGES)
        if is_running:  # somebody's step is held while the call is made
            beside = other.forward(PROMPT, pages=[0])
            await rig.gate.wait_started(1)
        ticket = begin(Client(session))

        async def wait() -> None:
            await session.tickets.wait_any([ticket], None)
            await Client(session).resolve(getattr(session, take)(ticket))

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                for _ in range(num_steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        if end == "ticket":
            session.cancel(ticket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.close)
            await trio.lowlevel.checkpoint()
            rig.gate.open()
        assert_is_closed(session)
        if is_running:
            batches = rig.engine.batches
            num_run = sum(len(b.forwards) + len(b.projections) for b in batches)
            assert num_run == 1, "what nobody wants any more is not run"
            assert await other.take(beside) == fake_continuation(PROMPT, 1)
        else:
            assert await other.run(PROMPT, pages=[0]) == fake_continuation(PROMPT, 1)[0]
