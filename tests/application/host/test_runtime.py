"""``runtime.wit`` and ``debug-queue``: names, spans, the log, pressure, and questions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import trio

from pie_trio import __version__
from pie_trio.application.host import runtime as runtime_module
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.session import Launch
from pie_trio.application.services import Services
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import BadArgumentError, LimitError
from tests.application.host.clients import (
    PAGE_SIZE,
    Client,
    GuestSession,
    Rig,
    open_rig,
)
from tests.control.engines import TIME_LIMIT_SECONDS


def make_session(**launch: Any) -> GuestSession:
    details = {"instance_id": "test-1", "arguments": '{"n": 3}', **launch}
    log = InstanceLog(max_bytes=10_000)
    return GuestSession(Launch(**details), Services(), InstanceLimits(), log)


def test_an_instance_knows_who_it_is_and_what_it_was_launched_with() -> None:
    session = make_session(owner="alice")
    assert session.get_version() == __version__
    assert session.get_instance_id() == "test-1"
    assert session.get_owner() == "alice"
    assert json.loads(session.get_arguments()) == {"n": 3}


async def test_the_clock_is_that_of_the_deadlines() -> None:
    session = make_session()
    before = trio.current_time()
    assert before <= session.now() <= trio.current_time()


def test_a_log_line_has_its_level_and_its_fields() -> None:
    session = make_session()
    runtime_module.log(session, "warning", "slow", '{"seconds": 3}')
    runtime_module.log(session, "debug", "two\nlines", "")
    found = [(line.source, line.text) for line in session.log.lines]
    assert found == [
        ("warning", 'slow {"seconds": 3}'),
        ("debug", "two"),
        ("debug", "lines"),
    ]


async def test_spans_begin_and_end() -> None:
    session = make_session()
    outer = session.begin_span("outer")
    inner = session.begin_span("inner")
    session.end_span(inner)
    found_outer, found_inner = session.services.timeline.spans
    assert (found_outer.name, found_outer.instance) == ("outer", "test-1")
    ends = [found_outer.ends_at, found_inner.ends_at]
    assert ends[0] is None
    assert ends[1] is not None
    assert found_outer.begins_at <= found_inner.begins_at <= ends[1]
    session.end_span(outer)
    assert found_outer.ends_at == pytest.approx(session.now(), abs=TIME_LIMIT_SECONDS)
    assert outer != inner


async def test_the_end_of_an_unknown_span_and_a_second_end_change_nothing() -> None:
    session = make_session()
    session.end_span(99)
    number = session.begin_span("once")
    session.end_span(number)
    (span,) = session.services.timeline.spans
    ends_at = span.ends_at
    session.end_span(number)
    assert span.ends_at == ends_at


async def test_spans_are_bounded_in_number_and_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_module, "MAX_OPEN_SPANS", 2)
    session = make_session()
    numbers = [session.begin_span("x" * 10_000) for _ in range(3)]
    assert list(session.runtime.spans) == numbers[1:]
    assert all(len(span.name) == 256 for span in session.services.timeline.spans)
    session.end_span(numbers[0])  # forgotten: as an unknown one


async def test_spans_that_are_open_end_with_the_instance() -> None:
    async with open_rig() as rig:
        async with rig.open_client() as client:
            client.session.begin_span("open")
            (span,) = client.session.services.timeline.spans
            assert span.ends_at is None
        assert span.ends_at is not None


# ---- pages ----------------------------------------------------------------------------


async def fill(client: Client, pages: list[int]) -> int:
    """Write these new pages; return the token that follows."""
    client.session.alloc_kvpage(0, pages)
    return await client.run(bytes(len(pages) * PAGE_SIZE), pages=pages)


def pages_of(client: Client) -> dict[str, int]:
    found: dict[str, int] = json.loads(client.session.debug_query("pages"))["fake"]
    return found


async def test_a_pressure_ticket_is_ready_when_pages_are_short() -> None:
    async with open_rig(num_pages=4) as rig, rig.open_client("old") as old:
        await fill(old, [0, 1, 2])
        ticket = old.session.memory_pressure()
        assert old.session.wait([ticket], trio.current_time()) == []
        async with rig.open_client("new") as new, trio.open_nursery() as nursery:
            nursery.start_soon(fill, new, [0, 1])
            await old.resolve(old.session.finish(ticket))
            old.session.dealloc_kvpage(0, [0, 1, 2])


async def test_every_pressure_ticket_is_ready_at_once_and_only_once() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        first, second = session.memory_pressure(), session.memory_pressure()
        assert session.runtime.signal_pressure(session)
        assert session.wait([first, second], None) == [first, second]
        assert not session.runtime.signal_pressure(session), "nobody listens any more"
        later = session.memory_pressure()
        assert session.wait([later], trio.current_time()) == []


@pytest.mark.parametrize("close", ["cancel", "release"])
async def test_a_pressure_ticket_that_was_given_up_does_not_listen(close: str) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        getattr(session, close)(session.memory_pressure())
        assert not session.runtime.signal_pressure(session)


async def test_pressure_tickets_are_limited_as_all_tickets_are() -> None:
    limits = InstanceLimits(max_in_flight=1)
    async with open_rig(limits=limits) as rig, rig.open_client() as client:
        client.session.memory_pressure()
        with pytest.raises(LimitError):
            client.session.memory_pressure()
        with pytest.raises(LimitError):
            client.session.suspend_pages()


async def test_suspended_pages_are_in_host_memory_until_a_command_needs_them() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        await fill(client, [0, 1])
        expected = await client.run([0], pages=[0, 1], start=2 * PAGE_SIZE - 1)
        await client.resolve(client.session.finish(client.session.suspend_pages()))
        found = pages_of(client)
        assert (found["on_device"], found["in_host_memory"]) == (0, 2)
        assert rig.pool.num_free == rig.pool.num_pages
        again = await client.run([0], pages=[0, 1], start=2 * PAGE_SIZE - 1)
        assert again == expected
        found = pages_of(client)
        assert (found["on_device"], found["in_host_memory"]) == (2, 0)


async def test_pages_that_are_shared_are_not_suspended() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        await fill(client, [0, 1])
        metadata = np.empty(0, np.uint8)
        session = client.session
        session.export_kvpage(0, [0], "kept", False, ("owner", None), None, metadata)
        await client.resolve(client.session.finish(client.session.suspend_pages()))
        found = pages_of(client)
        assert (found["on_device"], found["in_host_memory"]) == (1, 1)


async def test_without_room_in_host_memory_nothing_is_moved() -> None:
    control = ControlConfig(policy="rendezvous:0.5,0", swap_bytes=0)
    async with open_rig(control=control) as rig, rig.open_client() as client:
        await fill(client, [0])
        await client.resolve(client.session.finish(client.session.suspend_pages()))
        assert pages_of(client)["on_device"] == 1


async def test_an_instance_without_a_model_suspends_nothing() -> None:
    session = make_session()
    ticket = session.suspend_pages()
    assert session.wait([ticket], None) == [ticket]
    await session.close()


async def test_pages_of_all_models_are_suspended() -> None:
    async with open_rig(names=("one", "two")) as rig, rig.open_client() as client:
        session = client.session
        session.create_queue(1, "two")
        for queue in (0, 1):
            session.alloc_kvpage(queue, [0])
            await client.run(b"ab", pages=[0], queue=queue)
        await client.resolve(session.finish(session.suspend_pages()))
        found = json.loads(session.debug_query("pages"))
        assert {name: found[name]["in_host_memory"] for name in found} == {
            "one": 1,
            "two": 1,
        }


# ---- questions ------------------------------------------------------------------------


async def test_questions_about_the_instance() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        token = await fill(client, [0, 1])
        assert token >= 0
        ticket = session.memory_pressure()

        def ask(query: str) -> Any:
            return json.loads(session.debug_query(query))

        assert ask("limits")["max_in_flight"] == rig.limits.max_in_flight
        assert ask("pages") == {
            "fake": {
                "handles": 2,
                "pages": 2,
                "on_device": 2,
                "in_host_memory": 0,
                "free": rig.pool.num_pages - 2,
                "total": rig.pool.num_pages,
                "page_size": PAGE_SIZE,
            }
        }
        assert ask("tickets") == {
            "open": 1,
            "most": rig.limits.max_in_flight,
            "unfinished": 0,
        }
        (command,) = ask("trace")
        assert (command["kind"], command["num_tokens"]) == ("FORWARD", 2 * PAGE_SIZE)
        session.cancel(ticket)


async def test_an_instance_is_told_of_its_own_commands_alone() -> None:
    async with open_rig() as rig, rig.open_client("a") as a, rig.open_client("b") as b:
        await fill(a, [0])
        await fill(b, [0, 1])
        (command,) = json.loads(b.session.debug_query("trace"))
        assert command["tenant"] == "b"


async def test_questions_about_a_queue() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        session = client.session

        def ask(query: str) -> Any:
            return json.loads(session.debug_queue(0, query))

        session.set_queue_priority(0, "high")
        session.alloc_kvpage(0, [0, 1])
        client.forward(b"ab", pages=[0])
        await rig.gate.wait_started(1)
        assert ask("commands") == {"unfinished": 1, "priority": "high"}
        assert ask("pages")["handles"] == 2
        rig.gate.open()
        await client.synchronize()
        found = ask("batcher")
        assert (found["steps"], found["unfinished"]) == (1, 0)
        assert (found["policy"], found["contention"]) == ("rendezvous:0.5,0", "ladder")


async def test_batches_are_explained_in_words() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        await explain_blocked_commands(rig, client)


async def explain_blocked_commands(rig: Rig, client: Client) -> None:
    session = client.session
    session.alloc_kvpage(0, [0, 1])
    client.forward(b"a", pages=[1])
    await rig.gate.wait_started(1)
    client.forward(b"a", pages=[0])
    last = client.forward(b"b", pages=[0], start=1)
    rig.gate.open()
    await client.take(last)
    found = json.loads(session.debug_queue(0, "explain"))
    assert found["text"].startswith("3 steps ran 3 commands with 3 new tokens")
    texts = [step["text"] for step in found["steps"]]
    assert [step["number"] for step in found["steps"]] == [1, 2, 3]
    assert "nothing else" in texts[0]
    assert "1 command was not ready, after others on the same pages." in texts[1]


async def test_nothing_was_run_is_an_explanation_too() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        found = json.loads(client.session.debug_queue(0, "explain"))
        assert found == {"text": "The device has not made a step.", "steps": []}


@pytest.mark.parametrize("call", ["debug_query", "debug_queue"])
async def test_a_question_that_there_is_not_lists_those_that_there_are(
    call: str,
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        arguments = ["nonsense"] if call == "debug_query" else [0, "nonsense"]
        with pytest.raises(BadArgumentError, match=r"'nonsense': ask one of .*pages"):
            getattr(client.session, call)(*arguments)


@pytest.mark.parametrize("close", ["cancel", "release"])
async def test_suspensions_that_were_given_up_are_limited_too(close: str) -> None:
    limits = InstanceLimits(max_in_flight=3)
    async with open_rig(gated=True, limits=limits) as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0])
        last = client.forward(b"a", pages=[0])
        await rig.gate.wait_started(1)
        for _ in range(2):
            getattr(session, close)(session.suspend_pages())
        kept = session.suspend_pages()
        with pytest.raises(LimitError, match="3 suspensions have not finished"):
            session.suspend_pages()
        rig.gate.open()
        await client.take(last)
        await client.resolve(session.finish(kept))
        assert len(session.tickets) == 0
        assert session.runtime.num_suspending == 0
