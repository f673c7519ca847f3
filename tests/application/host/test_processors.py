"""Processors as an instance sees them: handles, streams, limits, and that none is lost."""

from __future__ import annotations

import re
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from pie_trio.config import ControlConfig, InstanceLimits, SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.errors import (
    BadArgumentError,
    BusyError,
    CancelledError,
    GrammarError,
    LimitError,
    ProcessorError,
    UnknownHandleError,
    UnsupportedError,
)
from tests.application.host.clients import open_rig
from tests.application.host.test_decode import (
    PROMPT,
    alloc,
    read,
    read_all,
    read_until_error,
    start,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.engine_api import ProcessorSpec
    from tests.application.host.clients import Client, Rig

EOS = 257
FORM = ("regex", "[a-f]{12}")


@pytest.fixture(autouse=True)
def _needs_grammars() -> None:
    pytest.importorskip("llguidance")


def spec(
    grammar: tuple[str, str] | None = None,
    *,
    bias: Sequence[tuple[int, float]] = (),
    allowed: Sequence[int] | None = None,
    presence: float = 0.0,
    dry: tuple[float, float, int, list[int]] | None = None,
    mirostat: tuple[float, float] | None = None,
) -> tuple[Any, ...]:
    """Return what the wire carries for the record ``processor-spec``."""
    chosen = None if allowed is None else list(allowed)
    return (
        grammar,
        list(bias),
        chosen,
        1.0,
        presence,
        0.0,
        dry,
        0,
        list[int](),
        mirostat,
    )


def greedy(processor: int) -> tuple[Any, ...]:
    return (0.0, 0, 1.0, 0.0, 0, processor, None)


async def create(client: Client, number: int, made: tuple[Any, ...]) -> None:
    ticket = client.session.create_processor(number, "", made)
    await client.resolve(client.session.finish(ticket))


def forward(
    client: Client, processor: int, *, rows: Sequence[int] = (0,), queue: int = 0
) -> int:
    outputs = [(np.array(rows, np.int32), greedy(processor), 0, frozenset[str]())]
    tokens = np.array(PROMPT[:2], np.int32)
    request = (tokens, np.arange(2, dtype=np.int32), [0], 0, None, outputs, "")
    ticket: int = client.session.forward_text(queue, request)
    return ticket


def allowed(client: Client, processor: int) -> set[int]:
    words = client.session.allowed(processor).tolist()
    return {i for i in range(32 * len(words)) if words[i // 32] >> (i % 32) & 1}


def hold_compiler(rig: Rig) -> threading.Event:
    """Let processors be made only once the event is set."""
    engine, may_go_on = rig.engine, threading.Event()
    create_now = engine.create_processor

    def create_later(number: int, made: ProcessorSpec) -> None:
        assert may_go_on.wait(20), "the test did not let the compiler go on"
        create_now(number, made)

    vars(engine)["create_processor"] = create_later
    return may_go_on


async def test_a_forward_is_sampled_through_its_processor() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec(allowed=[70, 71, 72], presence=100.0))
        found: list[int] = []
        for _ in range(3):
            (token,) = await client.take(forward(client, 1))
            assert client.session.accept(1, [token]) == 1
            found.append(token)
        assert sorted(found) == [70, 71, 72]
        client.session.rollback(1, 1)
        assert await client.take(forward(client, 1)) == found[2:]


async def test_a_projection_is_sampled_through_its_processor() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        await create(client, 1, spec(bias=[(99, 100.0)]))
        session.alloc_emb(0, [0, 1])
        one, position = np.array([65], np.int32), np.zeros(1, np.int32)
        session.embed_txt(0, one, position, [0])
        session.forward(0, [], [0], [], [1], None)
        outputs = [(position, greedy(1), 0, frozenset[str]())]
        assert await client.take(session.project(0, [1], outputs)) == [99]


async def test_a_grammar_says_what_may_come_next() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        await create(client, 1, spec(("regex", "ab|ac")))
        session = client.session
        assert allowed(client, 1) == {ord("a")}
        assert session.accept(1, list(b"ax")) == 1
        session.fork_processor(1, [2, 3])
        assert not session.has_ended(2)
        assert session.accept(2, [ord("b"), EOS, EOS]) == 3
        assert session.has_ended(2)
        assert allowed(client, 3) == {ord("b"), ord("c")}
        session.rollback(2, 4)
        assert allowed(client, 2) == {ord("a")}
        session.destroy_processor([1, 3])
        with pytest.raises(UnknownHandleError, match="processor 1"):
            session.allowed(1)


async def test_what_commands_on_their_way_use_is_neither_changed_nor_lost() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        session = client.session
        alloc(client)
        await create(client, 1, spec(allowed=[70]))
        tickets = [forward(client, 1), forward(client, 1)]  # one after the other
        await rig.gate.wait_started(1)
        calls: list[Callable[[], Any]] = [
            lambda: session.accept(1, [70]),
            lambda: session.rollback(1, 0),
            lambda: session.allowed(1),
            lambda: session.has_ended(1),
            lambda: session.fork_processor(1, [2]),
            lambda: start(client, sampler=greedy(1)),
        ]
        for call in calls:
            with pytest.raises(BusyError, match="2 forwards on their way"):
                call()
        session.destroy_processor([1])
        await create(client, 1, spec(allowed=[71]))  # the number is free
        assert rig.engine.num_processors == 2
        rig.gate.open()
        assert [await client.take(ticket) for ticket in tickets] == [[70], [70]]
        assert rig.engine.num_processors == 1
        assert session.accept(1, [71]) == 1


async def test_a_processor_that_is_being_made_is_busy() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session, may_go_on = client.session, hold_compiler(rig)
        alloc(client)
        ticket = session.create_processor(1, "", spec())
        for call in (lambda: session.accept(1, [1]), lambda: forward(client, 1)):
            with pytest.raises(BusyError, match="being made: wait for the ticket"):
                call()
        with pytest.raises(BadArgumentError, match="processor 1 is in use"):
            session.create_processor(1, "", spec())
        may_go_on.set()
        await client.resolve(session.finish(ticket))
        assert session.accept(1, [1]) == 1


async def test_a_grammar_that_cannot_be_used_fails_the_ticket_and_frees_the_number() -> (
    None
):
    async with open_rig() as rig, rig.open_client() as client:
        with pytest.raises(GrammarError, match="regex"):
            await create(client, 1, spec(("regex", "(")))
        with pytest.raises(BadArgumentError, match="allowed token"):
            await create(client, 1, spec(allowed=[999]))
        await create(client, 1, spec())


async def test_a_stream_moves_a_copy_and_its_reader_the_other() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec(FORM))
        start(client, sampler=greedy(1), max_tokens=28)
        tokens, text, finish = await read_all(client)
        assert finish == "grammar"
        assert bytes(tokens).decode() == text
        assert len(tokens) == 12
        assert client.session.accept(1, tokens) == 12
        assert allowed(client, 1) == {EOS}


async def test_a_stream_goes_on_where_the_reader_left_another() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        pages = alloc(client)
        await create(client, 1, spec(FORM))
        start(client, sampler=greedy(1), max_tokens=28)
        whole, _, _ = await read_all(client)
        start(client, sampler=greedy(1), max_tokens=28, max_unread=5)
        first = (await read(client))[0]
        client.session.close_stream(1)  # it may have sampled more
        assert client.session.accept(1, first) == len(first)
        start(
            client,
            tokens=first[-1:],
            first=len(PROMPT) + len(first) - 1,
            pages=pages,
            sampler=greedy(1),
            max_tokens=16,
        )
        rest, _, finish = await read_all(client)
        assert finish == "grammar"
        assert first + rest == whole


async def test_a_processor_is_asked_in_the_last_chunk_of_a_long_prefill() -> None:
    control = ControlConfig(max_batch_tokens=2)
    async with open_rig(control=control) as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec(("regex", "ab")))
        start(client, sampler=greedy(1))
        _, text, finish = await read_all(client)
        assert (text, finish) == ("ab", "grammar")
        assert len(rig.engine.batches) > len(PROMPT) // 2


async def test_a_stop_token_and_the_last_token_come_before_the_grammar_or_after() -> (
    None
):
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec(("regex", "[a-f]{3}")))
        start(client, sampler=greedy(1), max_tokens=3)
        tokens, _, finish = await read_all(client)
        assert finish == "grammar"
        start(client, sampler=greedy(1), max_tokens=9, stop_tokens=tokens[2:])
        _, _, finish = await read_all(client)
        assert finish == "stop-token"
        start(client, sampler=greedy(1), max_tokens=2)
        _, _, finish = await read_all(client)
        assert finish == "length"


async def test_a_fork_of_a_stream_goes_on_with_a_copy_of_its_processor() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec(FORM))
        start(client, sampler=greedy(1), max_tokens=28, max_unread=4)
        await rig.gate.wait_started(1)
        with pytest.raises(BadArgumentError, match="leave that of the sampler at 0"):
            client.session.fork_stream(1, 2, list(range(40, 48)), greedy(1))
        other = (3.0, 0, 1.0, 0.0, 5, 0, None)
        forked = client.session.fork_stream(1, 2, list(range(40, 48)), other)
        rig.gate.open()
        await client.resolve(client.session.finish(forked))
        left, _, finish = await read_all(client)
        right, _, other_finish = await read_all(client, 2)
        assert finish == other_finish == "grammar"
        for tokens in (left, left[:1] + right):
            assert re.fullmatch(FORM[1], bytes(tokens).decode())
        assert left != left[:1] + right


async def test_where_nothing_is_left_a_stream_fails_after_what_it_has() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec(("regex", "aab"), allowed=[ord("a")]))
        start(client, sampler=greedy(1))
        tokens: list[int] = []
        with pytest.raises(ProcessorError, match="no token is left"):
            await read_until_error(client, tokens)
        assert tokens == list(b"aa")
        client.session.close_stream(1)


async def test_calls_are_refused_by_the_name_of_the_missing_trait() -> None:
    async with open_rig() as rig:
        (model,) = rig.models.values()

        def lack(*traits: str) -> Rig:
            left = tuple(trait for trait in model.info.traits if trait not in traits)
            bare = replace(model, info=replace(model.info, traits=left))
            rig.services = replace(rig.services, models={"fake": bare})
            return rig

        async with lack("grammar").open_client() as client:
            await create(client, 1, spec())
            with pytest.raises(UnsupportedError, match="lacks the trait 'grammar'"):
                client.session.create_processor(2, "", spec(FORM))
        async with lack("grammar", "processors").open_client() as client:
            for call in (
                lambda: client.session.create_processor(1, "", spec()),
                lambda: forward(client, 1),
                lambda: start(client, sampler=greedy(1)),
            ):
                with pytest.raises(UnsupportedError, match="the trait 'processors'"):
                    call()
            assert len(client.session.tickets) == 0


async def test_wrong_calls_are_refused_and_change_nothing() -> None:
    async with open_rig(names=("fake", "other")) as rig, rig.open_client() as client:
        session = client.session
        session.create_queue(1, "other")
        alloc(client)
        session.alloc_kvpage(1, [0])
        await create(client, 1, spec())
        cases: list[tuple[type[Exception], str, Callable[[], Any]]] = [
            (BadArgumentError, "above 0", partial(session.create_processor, 0, "", spec())),
            (BadArgumentError, "above 0", lambda: session.fork_processor(1, [2, 0])),
            (BadArgumentError, "is in use", lambda: session.fork_processor(1, [2, 1])),
            (BadArgumentError, "twice", lambda: session.fork_processor(1, [2, 2])),
            (UnknownHandleError, "processor 9", lambda: session.accept(9, [1])),
            (UnknownHandleError, "processor 9", lambda: forward(client, 9)),
            (UnknownHandleError, "processor 9", lambda: session.rollback(9, 0)),
            (UnknownHandleError, "processor 9", lambda: session.fork_processor(9, [2])),
            (UnknownHandleError, "processor 9", lambda: session.destroy_processor([9])),
            (BadArgumentError, "token id", lambda: session.accept(1, [258])),
            (LimitError, "4096 tokens", lambda: session.accept(1, [1] * 4097)),
            (BadArgumentError, "cannot take back 1", lambda: session.rollback(1, 1)),
            (BadArgumentError, "one row, got 2", lambda: forward(client, 1, rows=[0, 1])),
            (BadArgumentError, "another model", lambda: forward(client, 1, queue=1)),
            (BadArgumentError, "max_tokens", lambda: start(client, sampler=greedy(1), max_tokens=0)),
            (BadArgumentError, "pages", lambda: start(client, sampler=greedy(1), max_tokens=999)),
            (UnknownHandleError, "page", lambda: start(client, sampler=greedy(1), pages=[*range(7), 99])),
        ]  # fmt: skip
        for error, message, call in cases:
            with pytest.raises(error, match=message):
                call()
        assert rig.engine.num_processors == 1
        assert session.accept(1, [1]) == 1


async def test_processors_are_limited_for_an_instance_its_user_and_the_server() -> None:
    limits = InstanceLimits(max_processors=3)
    async with open_rig(limits=limits) as rig:
        quotas = Quotas(SharedLimits(processors=5), SharedLimits(processors=4))
        rig.services = replace(rig.services, quotas=quotas)
        async with rig.open_client("a", owner="ann") as first:
            await create(first, 1, spec())
            first.session.fork_processor(1, [2, 3])
            with pytest.raises(LimitError, match="4 processors asked for"):
                first.session.fork_processor(1, [4])
            with pytest.raises(LimitError, match="4 processors asked for"):
                first.session.create_processor(4, "", spec())
            async with (
                rig.open_client("b", owner="ann") as second,
                rig.open_client("c", owner="bob") as third,
            ):
                await create(second, 1, spec())
                with pytest.raises(LimitError, match="the user ann, but 4"):
                    second.session.fork_processor(1, [2])
                await create(third, 1, spec())
                with pytest.raises(LimitError, match="the server, but 5"):
                    third.session.fork_processor(1, [2])
        assert quotas.server.is_idle


@pytest.mark.parametrize("way", ["cancel", "destroy", "close"])
async def test_what_is_given_up_while_it_is_made_is_dropped(way: str) -> None:
    async with open_rig() as rig:
        may_go_on = hold_compiler(rig)
        async with rig.open_client() as client:
            session = client.session
            grammar = ("regex", "(") if way == "destroy" else FORM
            ticket = session.create_processor(1, "", spec(grammar))
            await wait_all_tasks_blocked()  # it is in its thread
            if way == "cancel":
                session.cancel(ticket)
            elif way == "destroy":
                session.destroy_processor([1])
                retry = session.create_processor(1, "", spec())
            may_go_on.set()
            if way == "destroy":
                with pytest.raises(GrammarError):
                    await client.resolve(session.finish(ticket))
                await client.resolve(session.finish(retry))
                assert session.accept(1, [1]) == 1
                assert rig.engine.num_processors == 1


async def use_processors(client: Client, reach: Callable[[int], None]) -> None:
    alloc(client)
    ticket = client.session.create_processor(1, "", spec(FORM))
    reach(1)
    await client.resolve(client.session.finish(ticket))
    ticket = forward(client, 1)
    reach(2)
    await client.take(ticket)
    client.session.fork_processor(1, [2])
    start(client, sampler=greedy(2), max_unread=3, max_tokens=20)
    client.session.destroy_processor([2])
    reach(3)
    await read(client)
    forked = client.session.fork_stream(1, 2, list(range(20, 28)), greedy(0))
    reach(4)
    await client.resolve(client.session.finish(forked))
    await trio.sleep_forever()


@pytest.mark.parametrize("place", range(1, 6))
async def test_an_instance_with_processors_can_be_cancelled_at_each_wait(
    place: int,
) -> None:
    async with open_rig() as rig:
        reached, ended, scope = trio.Event(), trio.Event(), trio.CancelScope()

        def reach(found: int) -> None:
            if found == place:
                rig.gate.hold()
                reached.set()

        async def run() -> None:
            async with rig.open_client() as client:
                with scope:
                    await use_processors(client, reach)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            if place < 5:
                await reached.wait()
            await wait_all_tasks_blocked()
            scope.cancel()
            rig.gate.open()
            await ended.wait()
        assert scope.cancelled_caught
        rig.check_all_free()


async def test_a_withdrawn_forward_gives_its_processor_back() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        alloc(client)
        await create(client, 1, spec())
        client.forward(b"x", pages=[1])
        await rig.gate.wait_started(1)
        ticket = forward(client, 1)
        client.session.cancel(ticket)
        rig.gate.open()
        await client.synchronize()
        assert client.session.accept(1, [5]) == 1


async def test_streams_with_processors_end_together_with_their_model() -> None:
    with trio.CancelScope() as scope:
        async with open_rig() as rig, rig.open_client() as client:
            alloc(client)
            await create(client, 1, spec(FORM))
            rig.gate.hold()
            start(client, sampler=greedy(1))
            await rig.gate.wait_started(1)
            rig.gate.let_go()
            scope.cancel()
            with pytest.raises(CancelledError):
                await read(client)
    assert scope.cancelled_caught
    assert rig.engine.num_processors == 0
