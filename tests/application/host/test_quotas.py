"""What the inferlets of a user, and of the server, may use together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pie_trio.application.host.session import Launch
from pie_trio.config import InstanceLimits, SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.errors import LimitError
from tests.application.host.clients import Client, Rig, open_rig

USER = SharedLimits(pages=4, embeds=3, queues=2, commands_in_flight=2)
SERVER = SharedLimits(pages=6, embeds=8, queues=8, commands_in_flight=8)


def client_of(rig: Rig, owner: str, number: int) -> Client:
    session = rig.make_session()
    name = f"{owner}-{number}"
    services = session.services
    made = type(session)(
        Launch(name, "{}", owner), services, session.limits, session.log
    )
    made.create_queue(0, "")
    return Client(made)


async def test_users_and_the_server_have_limits_of_their_own() -> None:
    async with open_rig(gated=True) as rig:
        rig.services = replace(rig.services, quotas=Quotas(SERVER, USER))
        ann, annie = client_of(rig, "ann", 1), client_of(rig, "ann", 2)
        bob = client_of(rig, "bob", 1)
        with pytest.raises(LimitError, match=r"3 queues .* the user ann, but 2 may"):
            annie.session.create_queue(1, "")
        ann.session.alloc_kvpage(0, [0, 1, 2])
        with pytest.raises(LimitError, match=r"5 pages .* the user ann, but 4 may"):
            annie.session.alloc_kvpage(0, [0, 1])
        annie.session.alloc_kvpage(0, [0])
        with pytest.raises(LimitError, match=r"7 pages .* the server, but 6 may"):
            bob.session.alloc_kvpage(0, [0, 1, 2])
        ann.session.alloc_emb(0, [0, 1, 2])
        with pytest.raises(LimitError, match=r"4 embeds .* the user ann"):
            annie.session.alloc_emb(0, [0])
        for page in (0, 1):
            ann.forward(b"x", pages=[page])
        with pytest.raises(LimitError, match=r"3 commands in flight .* the user ann"):
            annie.forward(b"x", pages=[0])
        bob.session.alloc_kvpage(0, [0, 1])
        bob.forward(b"x", pages=[0])
        rig.gate.open()
        for client in (ann, annie, bob):
            await client.session.close()
        assert rig.services.quotas.server.is_idle
        assert all(quota.is_idle for quota in rig.services.quotas.users.values())


def test_inferlets_of_a_user_count_together_though_one_used_nothing_for_a_while() -> (
    None
):
    quotas = Quotas(SERVER, USER)
    first = quotas.share_of("ann")
    other = quotas.share_of("bob")
    second = quotas.share_of("ann")
    first.take("pages", 3)
    other.take("pages", 1)
    assert second.room("pages") == 1
    with pytest.raises(LimitError, match="the user ann"):
        second.check("pages", 2)
    first.give("pages", 3)
    del first, second
    assert list(quotas.users) == ["bob"], "nothing is kept of those who have gone"


async def test_what_is_given_back_may_be_taken_by_others() -> None:
    async with open_rig() as rig:
        rig.services = replace(rig.services, quotas=Quotas(SERVER, USER))
        ann, annie = client_of(rig, "ann", 1), client_of(rig, "ann", 2)
        ann.session.alloc_kvpage(0, [0, 1, 2, 3])
        ann.session.dealloc_kvpage(0, [0, 1])
        annie.session.alloc_kvpage(0, [0])
        await ann.session.close()
        annie.session.alloc_kvpage(0, [1, 2, 3])
        annie.session.create_queue(1, "")
        await annie.session.close()
        assert rig.services.quotas.server.is_idle


async def test_masks_in_flight_have_a_limit() -> None:
    limits = InstanceLimits(max_mask_bytes=40)
    plain = [[0, 4]] * 4  # 16 entries
    async with open_rig(gated=True, limits=limits) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        tickets = [client.forward(b"abcd", pages=[page], mask=plain) for page in (0, 1)]
        with pytest.raises(LimitError, match=r"16 entries, .* leave room for 8"):
            client.forward(b"abcd", pages=[2], mask=plain)
        unmasked = client.forward(b"abcd", pages=[2])
        rig.gate.open()
        for ticket in (*tickets, unmasked):
            await client.take(ticket)
        await client.run(b"abcd", pages=[2], mask=plain)


async def test_masks_of_all_inferlets_have_a_limit() -> None:
    async with open_rig(gated=True) as rig:
        server = replace(SERVER, mask_bytes=20)
        rig.services = replace(rig.services, quotas=Quotas(server, SharedLimits()))
        ann, bob = client_of(rig, "ann", 1), client_of(rig, "bob", 1)
        for client in (ann, bob):
            client.session.alloc_kvpage(0, [0])
        ann.forward(b"abcd", pages=[0], mask=[[0, 4]] * 4)
        with pytest.raises(LimitError, match="leave room for 4"):
            bob.forward(b"abcd", pages=[0], mask=[[0, 4]] * 4)
        rig.gate.open()
        for client in (ann, bob):
            await client.session.close()
        assert rig.services.quotas.server.is_idle
