"""The trace as a viewer gets it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.timeline import Span
from pie_trio.application.trace_events import make_trace_events
from pie_trio.control.trace import CommandRecord, Trace
from tests.application.chrome_trace import check_trace_events
from tests.application.host.clients import open_rig
from tests.control.test_explaining import step

if TYPE_CHECKING:
    from collections.abc import Iterable

Event = dict[str, Any]

COMMAND = CommandRecord(
    tenant="a-1",
    queue=2,
    ticket=3,
    kind="FORWARD",
    num_tokens=4,
    submitted_at=1.0,
    batched_at=2.0,
    started_at=2.0,
    finished_at=3.0,
    step=7,
    batch_size=5,
    outcome="ok",
)


def make_trace(commands: Iterable[CommandRecord] = (), *, num_steps: int = 0) -> Trace:
    trace = Trace(lambda: 2.0)
    trace._commands.extend(commands)
    for number in range(1, num_steps + 1):
        times = {"gathering_since": number, "chosen_at": number + 0.25}
        trace.note_step(step(number=number, finished_at=number + 0.75, **times))
    return trace


def make_span(name: str, begins: float, ends: float | None, who: str = "a-1") -> Span:
    span = Span(who, name, begins)
    span.ends_at = ends
    return span


def make_events(trace: Trace, spans: Iterable[Span] = ()) -> list[Event]:
    made = json.loads(json.dumps(make_trace_events({"tiny": trace}, spans)))
    check_trace_events(made)
    events: list[Event] = made["traceEvents"]
    return events


def slices(events: Iterable[Event], category: str) -> list[Event]:
    return [e for e in events if e["ph"] == "X" and e["cat"] == category]


def track_names(events: Iterable[Event]) -> dict[tuple[int, int], str]:
    return {
        (e["pid"], e["tid"]): e["args"]["name"]
        for e in events
        if e["name"] in ("thread_name", "process_name")
    }


def test_a_step_is_a_slice_of_the_device_with_its_size_and_its_reason() -> None:
    events = make_events(make_trace(num_steps=2))
    first, second = slices(events, "step")
    assert track_names(events)[first["pid"], first["tid"]] == "device"
    assert (first["ts"], first["dur"]) == (250_000, 500_000)
    assert second["ts"] == 1_250_000
    assert first["name"] == "forward x3"
    assert first["args"]["size"] == 3
    assert first["args"]["tokens"] == 5
    assert first["args"]["reason"] == "there was nothing else"
    assert first["args"]["explanation"].startswith("Step 1 ran 3 of 3")


def test_free_pages_ready_commands_and_the_batch_size_are_counters() -> None:
    found: dict[str, list[float]] = {}
    for event in make_events(make_trace(num_steps=2)):
        if event["ph"] == "C":
            found.setdefault(event["name"], []).append(event["args"]["value"])
    assert found == {
        "free pages": [9, 9],
        "ready commands": [3, 0, 3, 0],
        "batch size": [3, 0, 3, 0],
    }


def test_a_command_is_queued_and_then_in_a_batch() -> None:
    events = make_events(make_trace([COMMAND]))
    whole, queued, batch = slices(events, "command")
    assert (whole["name"], whole["ts"], whole["dur"]) == ("forward", 0, 2_000_000)
    assert whole["args"] == {"queue": 2, "ticket": 3, "tokens": 4, "outcome": "ok"}
    assert (queued["name"], queued["ts"], queued["dur"]) == ("queued", 0, 1_000_000)
    assert (batch["name"], batch["ts"]) == ("in batch", 1_000_000)
    assert batch["args"] == {"step": 7, "size": 5}
    assert len({e["tid"] for e in (whole, queued, batch)}) == 1
    assert track_names(events)[1, whole["tid"]] == "a-1"


def test_a_command_that_never_ran_was_only_queued() -> None:
    never = COMMAND._replace(started_at=0.0, step=0, outcome="CancelledError")
    whole, queued = slices(make_events(make_trace([never])), "command")
    assert (queued["name"], queued["dur"]) == ("queued", whole["dur"])
    assert whole["args"]["outcome"] == "CancelledError"


def test_commands_of_an_inferlet_that_overlap_are_on_tracks_of_their_own() -> None:
    later = COMMAND._replace(ticket=4, submitted_at=1.5, finished_at=3.5)
    last = COMMAND._replace(ticket=5, submitted_at=3.1, started_at=3.2, finished_at=3.3)
    events = make_events(make_trace([COMMAND, later, last]))
    names = track_names(events)
    by_ticket = {
        e["args"]["ticket"]: names[1, e["tid"]]
        for e in slices(events, "command")
        if "ticket" in e["args"]
    }
    assert by_ticket == {3: "a-1", 4: "a-1 (2)", 5: "a-1"}


def test_commands_are_shown_inside_of_the_span_that_they_are_in() -> None:
    spans = [make_span("outer", 0.5, 4.0), make_span("inner", 0.75, 3.5)]
    events = make_events(make_trace([COMMAND]), spans)
    outer, inner = slices(events, "span")
    assert (outer["name"], outer["ts"], outer["dur"]) == ("outer", 0, 3_500_000)
    assert (inner["name"], inner["ts"]) == ("inner", 250_000)
    assert {e["tid"] for e in slices(events, "command")} == {outer["tid"]}
    assert inner["tid"] == outer["tid"]


def test_a_span_that_is_open_lasts_until_the_end() -> None:
    (span,) = slices(
        make_events(make_trace([COMMAND]), [make_span("open", 2.5, None)]), "span"
    )
    assert (span["ts"], span["dur"]) == (1_500_000, 500_000)


def test_each_model_is_a_process_and_has_the_spans_of_its_inferlets() -> None:
    spans = [make_span(f"of {who}", 1, 2, who) for who in ("a-1", "b-1", "none-1")]
    traces = {
        "first": make_trace([COMMAND]),
        "second": make_trace([COMMAND._replace(tenant="b-1"), COMMAND]),
    }
    made = make_trace_events(traces, spans)
    check_trace_events(made)
    names = track_names(made["traceEvents"])
    assert (names[1, 0], names[2, 0]) == ("model first", "model second")
    found = {e["name"]: e["pid"] for e in slices(made["traceEvents"], "span")}
    assert found == {"of a-1": 1, "of b-1": 2, "of none-1": 2}


def test_what_happens_to_pages_is_on_a_track_of_the_model() -> None:
    trace = make_trace([COMMAND])
    trace.note_page("bind", 5, 6, "a-1")
    (event,) = [e for e in make_events(trace) if e["ph"] == "i"]
    assert (event["name"], event["ts"]) == ("bind", 1_000_000)
    assert event["args"] == {"page": 5, "place": 6, "inferlet": "a-1"}


def test_nothing_at_all_is_a_trace_too() -> None:
    assert slices(make_events(make_trace()), "step") == []


TIMES = st.integers(0, 40).map(lambda number: number / 3e5)


@st.composite
def ranges(draw: st.DrawFn) -> list[float]:
    return sorted(draw(st.lists(TIMES, min_size=3, max_size=3)))


@given(
    commands=st.lists(ranges(), max_size=12),
    spans=st.lists(ranges(), max_size=8),
)
def test_whatever_overlaps_is_shown_without_being_cut(
    commands: list[list[float]], spans: list[list[float]]
) -> None:
    records = [
        COMMAND._replace(submitted_at=a, started_at=b, finished_at=c)
        for a, b, c in commands
    ]
    marked = [make_span("s", a, c) for a, _, c in spans]
    events = make_events(make_trace(records), marked)
    assert len(slices(events, "span")) == len(spans)
    wholes = [e for e in slices(events, "command") if "ticket" in e["args"]]
    assert len(wholes) == len(commands)


async def test_the_trace_of_a_real_run_keeps_the_rules() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1, 2])
        outer = session.begin_span("outer")
        tickets = [client.forward(b"abc", pages=[page]) for page in (0, 1, 2)]
        for ticket in tickets:
            await client.take(ticket)
        session.end_span(outer)
        session.begin_span("open")
        traces = {name: m.batcher.trace for name, m in rig.models.items()}
        made = make_trace_events(traces, session.services.timeline.spans)
    check_trace_events(json.loads(json.dumps(made)))
    assert len(slices(made["traceEvents"], "span")) == 2
    wholes = [
        e for e in slices(made["traceEvents"], "command") if "ticket" in e["args"]
    ]
    assert [e["args"]["ticket"] for e in wholes] == tickets
