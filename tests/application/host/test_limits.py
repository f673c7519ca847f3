"""Limits that hold: whoever exceeds one gets its error, others go on, and nothing is kept."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.application.host.instance_log import InstanceLog, LogAllowance
from pie_trio.application.host.session import MAX_TIMERS
from pie_trio.config import InstanceLimits, SharedLimits
from pie_trio.control import export_limits, outbox
from pie_trio.control.quotas import Quotas
from pie_trio.control.totals import Totals
from pie_trio.errors import CancelledError, LimitError
from tests.application.host.clients import Client, Rig, assert_is_closed, open_rig
from tests.application.host.test_children import MAINS, FakeSpawner
from tests.application.host.test_decode import (
    alloc,
    read_all,
    read_until_error,
    start,
    wait_paused,
)

if TYPE_CHECKING:
    from pie_trio.engine_api import ProcessorSpec

MANY = SharedLimits()


def limit_users(rig: Rig, **limits: int) -> Quotas:
    """Let users have lower limits from now on."""
    quotas = Quotas(MANY, replace(MANY, **limits))
    rig.services = replace(rig.services, quotas=quotas)
    return quotas


def plain_spec(grammar: tuple[str, str] | None = None) -> tuple[Any, ...]:
    """Return what the wire carries for a processor that does nothing else."""
    return (grammar, [(1, 1.0)], None, 1.0, 0.0, 0.0, None, 0, list[int](), None)


def hold_compiler(rig: Rig) -> tuple[threading.Event, list[int]]:
    """Let processors be made only once the event is set; return it, and which were begun."""
    create_now, may_go_on, begun = rig.engine.create_processor, threading.Event(), []

    def create_later(number: int, spec: ProcessorSpec) -> None:
        begun.append(number)
        assert may_go_on.wait(20), "the test did not let the compiler go on"
        create_now(number, spec)

    vars(rig.engine)["create_processor"] = create_later
    return may_go_on, begun


# ---- commands, results, streams -----------------------------------------------------------


async def test_results_that_nobody_takes_are_limited_in_bytes() -> None:
    limits = InstanceLimits(max_command_bytes=16_000)
    async with (
        open_rig(limits=limits) as rig,
        rig.open_client() as client,
        rig.open_client("other") as other,
    ):
        alloc(client)
        tickets = [client.forward(b"ab", pages=[0], top_k=200) for _ in range(4)]
        with pytest.raises(LimitError, match=r"bytes, but an inferlet may have 16000"):
            client.forward(b"ab", pages=[0], top_k=200)
        await client.synchronize()
        with pytest.raises(LimitError, match="take results"):
            client.forward(b"ab", pages=[0], top_k=200)  # they have run, and are kept
        alloc(other)
        await other.run(b"ab", pages=[0])
        await client.take(tickets[0])
        client.session.release(tickets[1])
        tickets[0] = client.forward(b"ab", pages=[0], top_k=200)
        client.session.cancel(tickets[0])
        for ticket in tickets[2:]:
            await client.take(ticket)


async def test_results_of_all_inferlets_of_a_user_are_limited_in_bytes() -> None:
    async with open_rig() as rig:
        limit_users(rig, command_bytes=16_000)
        async with (
            rig.open_client("a", owner="ann") as first,
            rig.open_client("b", owner="ann") as second,
            rig.open_client("c", owner="bob") as third,
        ):
            for client in (first, second, third):
                alloc(client)
            tickets = [first.forward(b"ab", pages=[0], top_k=200) for _ in range(4)]
            with pytest.raises(LimitError, match=r"command bytes .* the user ann"):
                second.forward(b"ab", pages=[0], top_k=200)
            await third.run(b"ab", pages=[0], top_k=200)
            for ticket in tickets:
                await first.take(ticket)
            await second.run(b"ab", pages=[0], top_k=200)


async def test_what_streams_and_their_forks_keep_is_limited() -> None:
    limits = InstanceLimits(max_command_bytes=25_000)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        alloc(client, 0)
        alloc(client, 8)
        alloc(client, 16)
        with pytest.raises(LimitError, match="close streams"):
            start(client, stop_tokens=range(1000))
        start(client, 1, pages=range(8), max_unread=2)
        start(client, 2, pages=range(8, 16), max_unread=2)
        kept = client.session.in_flight.command_bytes
        await wait_paused(client, 1)
        forked = client.session.fork_stream(
            1, 3, list(range(24, 32)), (0.0, 0, 1.0, 0.0, 0, 0, None)
        )
        await client.resolve(client.session.finish(forked))
        assert client.session.in_flight.command_bytes == kept * 3 // 2
        with pytest.raises(LimitError, match="close streams"):
            start(client, 4, pages=range(16, 24), max_unread=90)
        for stream in (1, 2, 3):
            await read_all(client, stream)
        await client.synchronize()
        assert client.session.in_flight.command_bytes == 0


# ---- processors ---------------------------------------------------------------------------


async def test_copies_of_streams_count_as_processors() -> None:
    async with open_rig(limits=InstanceLimits(max_processors=2)) as rig:
        async with rig.open_client() as client:
            alloc(client)
            ticket = client.session.create_processor(1, "", plain_spec())
            await client.resolve(client.session.finish(ticket))
            sampler = (0.0, 0, 1.0, 0.0, 0, 1, None)
            start(client, 1, sampler=sampler, max_unread=1)
            with pytest.raises(
                LimitError, match=r"3 processors asked for.* may have 2"
            ):
                start(client, 2, sampler=sampler)
            with pytest.raises(LimitError, match="copies of decode streams"):
                client.session.fork_processor(1, [2])
            await wait_paused(client)
            with pytest.raises(LimitError, match="3 processors"):
                client.session.fork_stream(
                    1, 2, list(range(20, 28)), (*sampler[:5], 0, None)
                )
            client.session.close_stream(1)
            await client.synchronize()
            client.session.fork_processor(1, [2])


async def test_grammars_count_while_they_are_made_though_they_were_given_back() -> None:
    limits = InstanceLimits(max_processors=3)
    async with open_rig(limits=limits) as rig:
        may_go_on, _ = hold_compiler(rig)
        async with rig.open_client() as client:
            for _ in range(3):
                client.session.create_processor(1, "", plain_spec())
                await wait_all_tasks_blocked()
                client.session.destroy_processor([1])
            with pytest.raises(LimitError, match="that are being made"):
                client.session.create_processor(1, "", plain_spec())
            may_go_on.set()


async def test_what_processors_are_made_of_is_limited_in_bytes() -> None:
    async with open_rig() as rig:
        limit_users(rig, processor_bytes=20_000)
        rig.limits = InstanceLimits(max_processor_bytes=10_000)
        grammar = ("regex", "a" * 300)
        async with (
            rig.open_client("a", owner="ann") as first,
            rig.open_client("b", owner="ann") as second,
            rig.open_client("c", owner="ann") as third,
        ):
            with pytest.raises(LimitError, match="an inferlet may have 10000"):
                first.session.create_processor(1, "", plain_spec(("regex", "a" * 3000)))
            for client in (first, second):
                client.session.create_processor(1, "", plain_spec(grammar))
            with pytest.raises(LimitError, match=r"processor bytes .* the user ann"):
                third.session.create_processor(1, "", plain_spec(grammar))


async def test_an_owner_has_one_grammar_compiled_at_once() -> None:
    async with open_rig() as rig:
        may_go_on, begun = hold_compiler(rig)
        async with (
            rig.open_client("a", owner="ann") as first,
            rig.open_client("b", owner="ann") as second,
            rig.open_client("c", owner="bob") as third,
        ):
            for number in range(1, 6):
                for client in (first, second):
                    client.session.create_processor(number, "", plain_spec())
            await wait_all_tasks_blocked()
            ticket = third.session.create_processor(1, "", plain_spec())
            with trio.fail_after(30):
                while len(begun) < 2:  # they begin in threads
                    await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            assert (len(begun), 11 in begun) == (2, True), "one of ann's ten, and bob's"
            may_go_on.set()
            await third.resolve(third.session.finish(ticket))


# ---- messages -----------------------------------------------------------------------------


async def test_messages_that_wait_for_room_are_limited_though_they_are_empty() -> None:
    async with open_rig(limits=InstanceLimits(max_unread=1)) as rig:
        async with rig.open_client() as client:
            client.session.send("first")
            for _ in range(outbox.MAX_LATE):
                client.session.release(client.session.send(""))
            with pytest.raises(
                LimitError, match=f"{outbox.MAX_LATE + 1} messages wait"
            ):
                client.session.send("")


async def test_what_waits_for_clients_is_limited_for_a_user() -> None:
    async with open_rig() as rig:
        limit_users(rig, unread_bytes=1000)
        async with (
            rig.open_client("a", owner="ann") as first,
            rig.open_client("b", owner="ann") as second,
            rig.open_client("c", owner="bob") as third,
        ):
            assert first.session.send("x" * 900) is None
            assert second.session.send("x" * 200) is None, "an empty outbox takes one"
            with pytest.raises(LimitError, match=r"unread bytes .* the user ann"):
                second.session.send("x" * 200)
            assert third.session.send("x" * 900) is None
            assert await first.session.outbox.take() == ["x" * 900]
            assert second.session.send("x" * 200) is None


async def test_mailboxes_of_a_user_keep_what_is_newest() -> None:
    async with open_rig() as rig:
        limit_users(rig, unread_bytes=1000, subscriptions=3)
        async with (
            rig.open_client("a", owner="ann") as first,
            rig.open_client("b", owner="ann") as second,
        ):
            for number in (1, 2):
                first.session.subscribe(number, "news", False)
            second.session.subscribe(1, "other", True)
            with pytest.raises(LimitError, match=r"4 subscriptions .* the user ann"):
                second.session.subscribe(2, "other", True)
            for number in range(20):
                second.session.broadcast("news", ("text", f"{number:200}"))
            quota = rig.services.quotas.users["ann"]
            assert quota.used["unread_bytes"] <= 1000
            ticket = first.session.receive_broadcast(1)
            _, message, num_missed = await first.resolve(
                first.session.take_broadcast(ticket)
            )
            assert (int(message[1]), num_missed) == (int(message[1]), int(message[1]))
            first.session.unsubscribe(1)
            second.session.subscribe(2, "other", True)


async def test_a_mailbox_without_room_for_anything_misses_what_is_said() -> None:
    async with open_rig() as rig:
        limit_users(rig, unread_bytes=1000)
        async with (
            rig.open_client("a", owner="ann") as first,
            rig.open_client("b", owner="ann") as second,
        ):
            first.session.subscribe(1, "news", False)
            second.session.send("x" * 950)
            second.session.broadcast("news", ("text", "y" * 100))
            await second.session.outbox.take()
            second.session.broadcast("news", ("text", "z" * 100))
            ticket = first.session.receive_broadcast(1)
            _, message, num_missed = await first.resolve(
                first.session.take_broadcast(ticket)
            )
            assert (message, num_missed) == (("text", "z" * 100), 1)


# ---- what is used in all -------------------------------------------------------------------


async def test_tokens_are_limited_in_all() -> None:
    async with open_rig(limits=InstanceLimits(max_tokens=10)) as rig:
        async with rig.open_client() as client, rig.open_client("other") as other:
            alloc(client)
            with pytest.raises(LimitError, match=r"11 tokens would be .* use 10"):
                client.forward(bytes(11), pages=range(8))
            await client.run(b"abcd", pages=[0])
            start(client, tokens=[256, *b"ab"], max_tokens=9, pages=range(1, 8))
            tokens = list[int]()
            with pytest.raises(LimitError, match="11 tokens would be used in all"):
                await read_until_error(client, tokens)
            assert len(tokens) == 4, "3 were prefilled, and 3 more computed"
            with pytest.raises(LimitError, match="11 tokens"):
                client.forward(b"a", pages=[0], start=4)
            alloc(other)
            await other.run(b"abcd", pages=[0])


async def test_forwards_that_did_not_run_cost_no_tokens() -> None:
    limits = InstanceLimits(max_tokens=6)
    async with open_rig(gated=True, limits=limits) as rig, rig.open_client() as client:
        alloc(client)
        running = client.forward(b"ab", pages=[0])
        await rig.gate.wait_started(1)
        client.session.cancel(client.forward(b"abcd", pages=[1]))
        rig.gate.open()
        await client.take(running)
        await client.synchronize()
        await client.run(b"abcd", pages=[1])


async def test_children_are_charged_together_with_their_parent() -> None:
    limits = InstanceLimits(max_pages=6, max_tokens=8, max_queues=3)
    async with open_rig(limits=limits) as rig, rig.open_client("root") as client:
        child = rig.make_session("child", depth=1, tree=client.session.tree)
        child.create_queue(0, "")
        alloc(client, count=4)
        with pytest.raises(
            LimitError, match=r"7 pages .* root and its children, but 6"
        ):
            child.alloc_kvpage(0, [0, 1, 2])
        child.alloc_kvpage(0, [0, 1])
        child.create_queue(1, "")
        with pytest.raises(LimitError, match=r"4 queues .* root and its children"):
            child.create_queue(2, "")
        of_child = Client(child)
        await of_child.run(b"abcdef", pages=[0, 1])
        with pytest.raises(LimitError, match="10 tokens would be used"):
            client.forward(b"abcd", pages=[0])
        await child.close()
        assert_is_closed(child)
        alloc(client, 4, 2)
        with pytest.raises(LimitError, match="10 tokens"):
            client.forward(b"abcd", pages=[0])  # what was used does not come back
        # Another tree has its own.
        async with rig.open_client("other") as other:
            alloc(other, count=6)
            await other.run(b"abcd", pages=[0])


async def test_launches_and_arguments_of_children_are_limited() -> None:
    limits = InstanceLimits(max_launches=2, max_argument_bytes=20)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        session = client.session
        session.spawner = FakeSpawner(rig, MAINS)
        with pytest.raises(LimitError, match="40 characters as JSON, but 20"):
            session.spawn(1, "echo", '{"a": "' + 31 * "x" + '"}')
        for number in (1, 2):
            await client.resolve(session.finish(session.spawn(number, "say", "{}")))
            session.release_child(number)
        await wait_all_tasks_blocked()
        with pytest.raises(LimitError, match="3 launches would be used in all"):
            session.spawn(3, "say", "{}")


# ---- the log -------------------------------------------------------------------------------


def make_log(seconds: list[float], **limits: int | None) -> InstanceLog:
    log = InstanceLog(max_bytes=1000)
    totals = Totals({"log_bytes": limits.get("in_all")})
    rate = limits.get("rate")
    log.allowance = LogAllowance(1000, rate, totals, now=lambda: seconds[0])
    return log


def test_a_log_takes_so_much_at_once_and_so_much_a_second() -> None:
    seconds = [0.0]
    log = make_log(seconds, rate=100)
    for _ in range(30):
        log.write("info", "x" * 99)
    assert log.num_left_out == 20
    seconds[0] += 2.0
    for _ in range(5):
        log.write("info", "y" * 99)
    log.close()
    texts = [line.text for line in log.lines]
    assert texts.count("y" * 99) == 2
    told = [text for text in texts if "were left out" in text]
    assert told[0].startswith("20 lines were left out"), told
    assert told[1].startswith("3 lines were left out"), told
    assert "100 bytes a second" in told[0]


def test_a_log_takes_so_much_in_all() -> None:
    log = make_log([0.0], rate=None, in_all=500)
    for _ in range(10):
        log.write("info", "x" * 99)
    assert (len(log.lines), log.num_left_out) == (5, 5)


def test_a_log_without_limits_leaves_nothing_out() -> None:
    log = make_log([0.0], rate=None, in_all=None)
    for _ in range(100):
        log.write("info", "x" * 99)
    assert (log.num_left_out, log.num_dropped) == (0, 90)


# ---- what was kept for ever ----------------------------------------------------------------


async def test_timers_of_wasi_are_limited() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        numbers = [session.add_timer(1.0) for _ in range(MAX_TIMERS)]
        with pytest.raises(LimitError, match=f"{MAX_TIMERS} timers of WASI"):
            session.add_timer(1.0)
        session.drop_resource(numbers[0])
        session.add_timer(1.0)


async def test_a_synchronization_that_is_released_leaves_nothing() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        ticket = client.forward(b"a", pages=[0])
        queue = client.session.queues.get(0)
        for give_up in (client.session.release, client.session.cancel):
            give_up(client.session.synchronize(0))
        assert not queue._barriers
        rig.gate.open()
        await client.take(ticket)


async def test_the_pages_of_an_owners_exports_are_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_limits, "MAX_PAGES_OF_OWNER", 5)
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        await client.run(bytes(24), pages=range(6))

        def export(name: str, pages: list[int]) -> None:
            nothing = np.empty(0, np.uint8)
            client.session.export_kvpage(
                0, pages, name, True, ("owner", None), None, nothing
            )

        export("a", [0, 1, 2])
        with pytest.raises(LimitError, match="would have 6 pages, but 5"):
            export("b", [0, 1, 2])
        export("a", [0, 1, 2, 3, 4])  # in place of the one before
        with pytest.raises(LimitError, match="6 pages"):
            export("b", [5])
        client.session.unexport_kvpage(0, "a")
        export("b", [0, 1, 2, 3, 4])


@pytest.mark.parametrize("is_read_late", [True, False])
async def test_a_stream_that_nobody_reads_does_not_keep_its_adapter(
    is_read_late: bool, tmp_path: Any
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        model = rig.models["fake"]
        (tmp_path / "adapter_config.json").write_text("{}")
        (tmp_path / "adapter_model.safetensors").write_bytes(b"one")
        await model.load_adapter("one", tmp_path)
        alloc(client)
        request = list(_stream_request(max_unread=1))
        request[-1] = "one"
        client.session.start_stream(0, 1, tuple(request))
        await wait_paused(client)
        model.replicas.drop_adapter("one")
        assert client.session.get_all_adapters(0) == []
        if is_read_late:
            tokens = list[int]()
            with pytest.raises(CancelledError, match="the adapter one was dropped"):
                await read_until_error(client, tokens)
            assert len(tokens) == 1
        alloc(client, 8)
        await client.run(b"ab", pages=[8])


def _stream_request(*, max_unread: int) -> tuple[Any, ...]:
    tokens, positions = np.array([256, 97], np.int32), np.arange(2, dtype=np.int32)
    greedy = (0.0, 0, 1.0, 0.0, 0, 0, None)
    empty: list[Any] = []
    rest = (greedy, 20, empty, empty, False, max_unread, "")
    return (tokens, positions, list(range(8)), 0, *rest)
