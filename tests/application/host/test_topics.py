"""Broadcasts between instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from pie_trio.application.services import Grants
from pie_trio.errors import (
    BadArgumentError,
    ForbiddenError,
    UnknownHandleError,
)
from tests.application.host.clients import open_rig

if TYPE_CHECKING:
    from trio.testing import MockClock

SAID = ("text", "said")


async def test_all_who_subscribed_hear_it_but_the_sender(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_rig() as rig,
        rig.open_client("one") as one,
        rig.open_client("two") as two,
    ):
        one.session.subscribe(1, "news", False)
        one.session.subscribe(2, "news", True)
        two.session.subscribe(1, "news", False)
        assert one.session.broadcast("news", SAID) == 2
        ticket = two.session.receive_broadcast(1)
        assert await two.resolve(two.session.take_broadcast(ticket)) == ("one", SAID, 0)
        data = ("binary", np.frombuffer(b"\x00", np.uint8))
        assert two.session.broadcast("news", data) == 2
        ticket = one.session.receive_broadcast(1)
        answer = await one.resolve(one.session.take_broadcast(ticket))
        assert answer == ("two", ("binary", b"\x00"), 0)


async def test_who_unsubscribes_waits_no_longer(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.subscribe(1, "news", True)
        ticket = session.receive_broadcast(1)
        session.unsubscribe(1)
        assert await client.resolve(session.take_broadcast(ticket)) is None
        with pytest.raises(UnknownHandleError, match="subscription 1"):
            session.receive_broadcast(1)
        assert session.broadcast("news", SAID) == 0
        with pytest.raises(BadArgumentError, match="no name of a topic"):
            session.subscribe(1, "", False)


async def test_topics_of_other_owners_need_a_grant(autojump_clock: MockClock) -> None:
    async with (
        open_rig() as rig,
        rig.open_client("a", owner="ann") as ann,
        rig.open_client("b", owner="bob") as bob,
        rig.open_client("c", owner="cid", grants=Grants(topics=True)) as cid,
    ):
        ann.session.subscribe(1, "news", False)
        with pytest.raises(ForbiddenError, match="grant `topics`"):
            bob.session.broadcast("ann/news", SAID)
        with pytest.raises(ForbiddenError, match="grant `topics`"):
            bob.session.subscribe(1, "ann/news", False)
        assert bob.session.broadcast("news", SAID) == 0
        assert bob.session.broadcast("bob/news", SAID) == 0
        assert cid.session.broadcast("ann/news", SAID) == 1


async def test_an_instance_that_ends_is_subscribed_no_more(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        async with rig.open_client() as client:
            client.session.subscribe(1, "news", True)
            client.session.receive_broadcast(1)
        assert len(rig.services.topics) == 0
