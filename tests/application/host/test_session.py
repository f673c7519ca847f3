from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pie_trio.application.waiting import Waiting
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import (
    BadArgumentError,
    CancelledError,
    EngineError,
    LimitError,
    UnknownHandleError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import Rig, open_rig
from tests.control.engines import TIME_LIMIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

FAR = 1e6
"""A deadline that no test reaches."""


async def test_a_result_has_the_tokens_and_distributions_that_were_asked_for() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        ticket = client.forward(b"abc", pages=[0], outputs=[0, 2], top_k=3)
        results = await client.resolve(client.session.take_forward(ticket))
        tokens, top_ids, top_probs = results[0][:3]
        expected = [fake_continuation(b"abc"[:n], 1)[0] for n in (1, 3)]
        assert tokens == expected
        assert (len(top_ids), len(top_probs)) == (6, 6)
        assert [top_ids[0], top_ids[3]] == expected
        with pytest.raises(UnknownHandleError):
            client.session.take_forward(ticket)


async def test_clients_that_go_token_by_token_share_one_batch_a_step() -> None:
    """Not two halves that alternate, each of which reads all the weights."""
    num_clients, num_tokens = 6, 5
    control = ControlConfig(policy=f"rendezvous:0.5,{TIME_LIMIT_SECONDS}")

    async def generate(rig: Rig, prompt: bytes, ready: trio.Event) -> None:
        async with rig.open_client() as client:
            client.session.alloc_kvpage(0, [0, 1])
            await ready.wait()
            tokens, found = list(prompt), list[int]()
            for _ in range(num_tokens):
                start = len(prompt) + len(found) - 1 if found else 0
                tokens = [await client.run(tokens, pages=[0, 1], start=start)]
                found += tokens
            assert found == fake_continuation(prompt, num_tokens)

    async with open_rig(control=control, gated=True) as rig:
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            for number in range(num_clients):
                nursery.start_soon(generate, rig, b"a%d" % number, ready)
            await wait_all_tasks_blocked()
            ready.set()
            await wait_all_tasks_blocked()
            rig.gate.open()
        assert rig.engine.batch_sizes == [num_clients] * num_tokens


async def test_branches_of_one_program_share_a_batch() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2, 3])
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        tickets = [client.forward(b"abc", pages=[page]) for page in (1, 2, 3)]
        rig.gate.open()
        for ticket in tickets:
            assert await client.take(ticket) == fake_continuation(b"abc", 1)
        assert rig.engine.batch_sizes == [1, 3]


async def test_a_failed_batch_is_an_error_of_its_tickets_and_serving_goes_on() -> None:
    failures = {0: EngineError("scripted")}
    async with open_rig(failures=failures) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        with pytest.raises(EngineError, match="scripted"):
            await client.run(b"abc", pages=[0])
        assert len(client.session.tickets) == 0
        assert [await client.run(b"abc", pages=[0])] == fake_continuation(b"abc", 1)


async def test_a_cancelled_ticket_withdraws_its_command() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1])
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        ticket = client.forward(b"y", pages=[1])
        kept = client.forward(b"z", pages=[1])
        client.session.cancel(ticket)
        client.session.cancel(ticket)
        rig.gate.open()
        assert await client.take(kept) == fake_continuation(b"z", 1)
        assert rig.engine.batch_sizes == [1, 1]
        with pytest.raises(UnknownHandleError):
            client.session.take_forward(ticket)


async def test_a_destroyed_queue_withdraws_its_commands() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.create_queue(1, "fake")
        client.session.alloc_kvpage(0, [0, 1])
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        ticket = client.forward(b"y", pages=[1], queue=1)
        passed = client.session.synchronize(1)
        client.session.destroy_queue(1)
        with pytest.raises(UnknownHandleError, match="queue 1"):
            client.forward(b"y", pages=[1], queue=1)
        rig.gate.open()
        with pytest.raises(CancelledError):
            await client.take(ticket)
        await client.resolve(client.session.finish(passed))


async def test_synchronize_waits_for_the_commands_of_its_queue_alone() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        session = client.session
        session.create_queue(1, "")
        session.alloc_kvpage(0, [0])
        client.forward(b"x", pages=[0])
        other, own = session.synchronize(1), session.synchronize(0)
        assert session.wait([other, own], None) == [other]
        rig.gate.open()
        await client.resolve(session.finish(own))


async def test_waiting_returns_what_is_ready() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1])
        first, second = (client.forward(b"x", pages=[page]) for page in (0, 1))
        assert session.wait([first, second], session.now()) == []
        answer = session.wait([first, second], None)
        assert isinstance(answer, Waiting)
        rig.gate.open()
        ready = await client.resolve(answer)
        assert ready
        await client.synchronize()
        assert session.wait([second, first], FAR) == [second, first]


async def test_a_wait_that_could_not_end_or_makes_no_sense_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        for deadline in (float("nan"), float("inf"), -float("inf")):
            with pytest.raises(BadArgumentError, match="finite"):
                client.session.wait([], deadline)
        with pytest.raises(BadArgumentError, match="would never end"):
            client.session.wait([], None)
        with pytest.raises(UnknownHandleError, match="ticket 9"):
            client.session.wait([9], 1.0)


async def test_a_wait_without_tickets_sleeps(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        deadline = client.session.now() + 5
        assert await client.resolve(client.session.wait([], deadline)) == []
        assert client.session.now() == deadline


async def test_taking_what_is_no_forward_is_refused_and_leaves_the_ticket() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        ticket = client.session.synchronize(0)
        with pytest.raises(BadArgumentError, match="finish it instead"):
            client.session.take_forward(ticket)
        assert client.session.finish(ticket) is None
        with pytest.raises(UnknownHandleError):
            client.session.finish(ticket)


async def test_messages_beyond_what_the_client_may_leave_unread_get_a_ticket(
    autojump_clock: MockClock,
) -> None:
    async with (
        open_rig(limits=InstanceLimits(max_unread=1)) as rig,
        rig.open_client() as client,
    ):
        session = client.session
        assert session.send("a") is None
        ticket = session.send_bytes(np.frombuffer(b"b", np.uint8))
        assert ticket is not None
        assert session.wait([ticket], session.now()) == []
        assert await session.outbox.take() == ["a"]
        assert session.finish(ticket) is None
        assert await session.outbox.take() == [b"b"]


async def test_a_cancelled_message_is_not_sent(autojump_clock: MockClock) -> None:
    async with open_rig(limits=InstanceLimits(max_unread=1, max_in_flight=1)) as rig:
        async with rig.open_client() as client:
            client.session.send("a")
            for _ in range(3):
                ticket = client.session.send("b")
                assert ticket is not None
                client.session.cancel(ticket)
            client.session.send("c")
        assert await client.session.outbox.take() == ["a", "c"]
        assert await client.session.outbox.take() == []


async def test_each_limit_has_an_error_of_its_own() -> None:
    limits = InstanceLimits(max_in_flight=2, max_queues=2, max_pages=2, max_unread=1)
    async with (
        open_rig(gated=True, limits=limits) as rig,
        rig.open_client() as client,
    ):
        session = client.session
        session.create_queue(1, "")
        with pytest.raises(LimitError, match="3 queues asked for"):
            session.create_queue(2, "")
        session.alloc_kvpage(0, [0, 1])
        with pytest.raises(LimitError, match="3 pages asked for"):
            session.alloc_kvpage(0, [2])
        session.send("a")
        client.forward(b"x", pages=[0])
        ticket = client.forward(b"x", pages=[1])
        calls: list[Callable[[], object]] = [
            lambda: client.forward(b"x", pages=[1]),
            lambda: session.synchronize(0),
            lambda: session.send("b"),
        ]
        for call in calls:
            with pytest.raises(LimitError, match="2 commands are in flight"):
                call()
        session.cancel(ticket)
        late = session.send("b")
        assert late is not None
        session.cancel(late)
        with pytest.raises(LimitError, match="2 commands have not finished"):
            client.forward(b"x", pages=[1])


async def test_submitting_and_cancelling_for_long_is_refused_in_the_end() -> None:
    """The channel to the batcher has room for ``max_in_flight`` of each instance."""
    control = ControlConfig(max_instances=1)
    async with open_rig(
        gated=True, control=control, limits=InstanceLimits(max_in_flight=4)
    ) as rig:
        async with rig.open_client() as client:
            client.session.alloc_kvpage(0, [0])
            for _ in range(4):
                client.session.cancel(client.forward(b"x", pages=[0]))
            with pytest.raises(LimitError, match="4 commands have not finished"):
                client.forward(b"x", pages=[0])
            rig.gate.open()


async def test_models_are_found_by_name_and_the_first_is_the_default(
    autojump_clock: MockClock,
) -> None:
    control = ControlConfig(max_forward_tokens=64, max_distribution=500)
    async with open_rig(names=["a", "b"], control=control) as rig:
        session = rig.make_session()
        assert session.available_models() == ["a", "b"]
        assert session.get_model("")[0] == "a"
        assert session.get_model("b")[0] == "b"
        assert session.get_model("b")[10:12] == (64, 258), "no more than the vocabulary"
        with pytest.raises(BadArgumentError, match="no model 'c': the server has a, b"):
            session.create_queue(0, "c")


async def test_text_becomes_tokens_and_comes_back(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        session = rig.make_session()
        encoded = session.tokenize("", "hé", True)
        assert not isinstance(encoded, Waiting)
        assert encoded.tolist() == [256, *"hé".encode()]
        assert session.detokenize("fake", [256, *"hé".encode()]) == "hé"
        assert session.get_vocabs("")[97].tobytes() == b"a"
        with pytest.raises(BadArgumentError, match="token 258 is not below 258"):
            session.detokenize("", [1, 258])


async def test_timers_and_the_log_are_the_instance_s_own(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        one, other = rig.make_session("one"), rig.make_session("other")
        assert (one.get_instance_id(), one.get_arguments()) == ("one", "{}")
        number = one.add_timer(5.0)
        assert one.timer_deadline(number) == 5.0
        one.drop_resource(number)
        one.drop_resource(number)
        one.log.write("info", "hello")
        one.write_output(1, b"there\n")
        assert [line.text for line in one.log.lines] == ["hello", "there"]
        assert len(other.log.lines) == 0
