"""Cancelling any call that waits, at any moment, leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import trio

from pie_trio.application.services import Grants, Outgoing
from pie_trio.config import InstanceLimits
from tests.application.host.clients import GuestSession, assert_is_closed, open_rig
from tests.application.host.test_children import MAINS, FakeSpawner
from tests.application.outgoing.servers import NO_TLS, listen

URL = "http://127.0.0.1:{port}/"
Begin = Callable[[GuestSession, int], int]


def begin_send(session: GuestSession, _port: int) -> int:
    session.send("fills the outbox")
    return number_of(session.send("waits"))


def begin_send_child(session: GuestSession, _port: int) -> int:
    while (ticket := session.send_child(1, ("text", "x"))) is None:
        pass
    return number_of(ticket)


def number_of(ticket: Any) -> int:
    assert isinstance(ticket, int)
    return ticket


# What begins each call that waits; child 1 is there and never ends.
CALLS: dict[str, tuple[Begin, str]] = {
    "send": (begin_send, "finish"),
    "receive": (lambda s, _: s.receive(), "take_message"),
    "broadcast": (lambda s, _: s.receive_broadcast(1), "take_broadcast"),
    "get": (lambda s, _: s.store_get("key"), "take_value"),
    "set": (lambda s, _: s.store_set("key", np.zeros(9, np.uint8)), "finish"),
    "delete": (lambda s, _: s.store_delete("key"), "take_flag"),
    "exists": (lambda s, _: s.store_exists("key"), "take_flag"),
    "list": (lambda s, _: s.store_list_keys("", "", 9), "take_keys"),
    "http": (lambda s, port: s.http_get(URL.format(port=port)), "take_response"),
    "spawn": (lambda s, _: s.spawn(2, "hold", "{}"), "finish"),
    "send child": (begin_send_child, "finish"),
    "receive child": (lambda s, _: s.receive_child(1), "take_child_message"),
    "wait child": (lambda s, _: s.wait_child(1), "take_outcome"),
}


async def never_answer(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await trio.sleep_forever()


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 5, 9])
@pytest.mark.parametrize("end", ["ticket", "instance"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_is_cancelled_gives_everything_back(
    name: str, end: str, num_steps: int
) -> None:
    begin, take = CALLS[name]
    outgoing = Outgoing(make_ssl_context=lambda: NO_TLS)
    limits = InstanceLimits(max_unread=1)
    async with (
        listen(never_answer) as port,
        open_rig(outgoing=outgoing, limits=limits) as rig,
    ):
        session = rig.make_session(grants=Grants(http=("127.0.0.1:*",)))
        session.spawner = spawner = FakeSpawner(rig, MAINS)
        session.subscribe(1, "topic", False)
        launched = session.spawn(1, "hold", "{}")
        await session.tickets.wait_any([launched], None)
        session.finish(launched)
        ticket = begin(session, port)

        async def wait() -> None:
            await session.tickets.wait_any([ticket], None)
            getattr(session, take)(ticket)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                for _ in range(num_steps):
                    await trio.lowlevel.checkpoint()
                scope.cancel()
        if end == "ticket":
            session.cancel(ticket)
            assert len(session.tickets) == 0
        await session.close()
        for each in (session, *spawner.sessions):
            assert_is_closed(each)
        assert len(rig.services.topics) == 0
