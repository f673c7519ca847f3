"""The trace as Chrome's JSON trace events, which Perfetto and ``chrome://tracing`` show.

A model is a process. In it the device is a track with its steps, and an inferlet is a track with
its commands and the spans that it marks. Slices of one track must lie inside of each other or
apart, so what overlaps in an inferlet goes on in a second track of its own.

See Chromium's "Trace Event Format": ``X`` is a slice, ``C`` a counter, ``M`` names, ``i`` a point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pie_trio.control.explaining import explain_step, main_reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from pie_trio.application.timeline import Span
    from pie_trio.control.trace import CommandRecord, PageRecord, StepRecord, Trace

__all__ = ["make_trace_events"]

Event = dict[str, Any]

DEVICE_TRACK, PAGES_TRACK, FIRST_INFERLET_TRACK = 1, 2, 3


@dataclass(slots=True)
class _Slice:
    """Something with a begin and an end, in nanoseconds.

    Attributes:
        parts: What lies inside of it.
        may_hold: Others, that are not its parts, may be inside of it too.
    """

    name: str
    category: str
    begins: int
    ends: int
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    parts: Sequence[_Slice] = ()
    may_hold: bool = False


def make_trace_events(
    traces: Mapping[str, Trace], spans: Iterable[Span]
) -> dict[str, Any]:
    """Return the object that is written to a trace file.

    Args:
        traces: By name of the model, at least one. The spans of an inferlet are shown in the
            first model that it used; in the last one if it used none.
        spans: Those that are open last until the latest event.
    """
    contents = {
        name: (list(trace.steps), list(trace.commands), list(trace.pages))
        for name, trace in traces.items()
    }
    marked = list(spans)
    times = [span.begins_at for span in marked]
    times += [span.ends_at for span in marked if span.ends_at is not None]
    for steps, commands, pages in contents.values():
        times += [time for s in steps for time in (s.gathering_since, s.finished_at)]
        times += [time for c in commands for time in (c.submitted_at, c.finished_at)]
        times += [page.at for page in pages]
    clock = _Clock(min(times, default=0.0), max(times, default=0.0))
    events: list[Event] = []
    left = marked
    for process, (name, (steps, commands, pages)) in enumerate(contents.items(), 1):
        users = {command.tenant for command in commands}
        is_last = process == len(contents)
        own = [span for span in left if is_last or span.instance in users]
        left = [span for span in left if not is_last and span.instance not in users]
        events += _name("process_name", process, 0, f"model {name}")
        events += _device_events(process, steps, clock)
        events += _page_events(process, pages, clock)
        events += _inferlet_events(process, commands, own, clock)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


@dataclass(frozen=True, slots=True)
class _Clock:
    """Counts nanoseconds from the first event on."""

    begins_at: float
    ends_at: float

    def read(self, seconds: float) -> int:
        return round((seconds - self.begins_at) * 1e9)

    def span(self, first: float, last: float | None) -> tuple[int, int]:
        begins = self.read(first)
        return begins, max(begins, self.read(self.ends_at if last is None else last))


def _device_events(
    process: int, steps: Sequence[StepRecord], clock: _Clock
) -> Iterator[Event]:
    yield from _name("thread_name", process, DEVICE_TRACK, "device")
    for step in steps:
        begins, ends = clock.span(step.chosen_at, step.finished_at)
        made = _Slice(
            f"{step.kind.lower()} x{step.size}",
            "step",
            begins,
            ends,
            {
                "number": step.number,
                "size": step.size,
                "tokens": step.num_tokens,
                "reason": main_reason(step).value,
                "explanation": explain_step(step),
                "gathered_us": (step.chosen_at - step.gathering_since) * 1e6,
            },
        )
        yield from _slice_events(process, DEVICE_TRACK, made)
        for name, value, end in (
            ("free pages", step.num_free_pages, None),
            ("ready commands", step.num_ready, step.num_ready - step.size),
            ("batch size", step.size, 0),
        ):
            yield _counter(process, name, begins, value)
            if end is not None:
                yield _counter(process, name, ends, end)


def _page_events(
    process: int, pages: Sequence[PageRecord], clock: _Clock
) -> Iterator[Event]:
    if pages:
        yield from _name("thread_name", process, PAGES_TRACK, "pages")
    for page in pages:
        yield {
            "ph": "i",
            "s": "t",
            "name": page.event,
            "cat": "page",
            "pid": process,
            "tid": PAGES_TRACK,
            "ts": clock.read(page.at) / 1000,
            "args": {"page": page.page, "place": page.place, "inferlet": page.tenant},
        }


def _inferlet_events(
    process: int,
    commands: Sequence[CommandRecord],
    spans: Sequence[Span],
    clock: _Clock,
) -> Iterator[Event]:
    by_inferlet: dict[str, list[_Slice]] = {}
    for command in commands:
        by_inferlet.setdefault(command.tenant, []).append(_of_command(command, clock))
    for span in spans:
        ends = clock.span(span.begins_at, span.ends_at)
        made = _Slice(span.name, "span", *ends, may_hold=True)
        by_inferlet.setdefault(span.instance, []).append(made)
    track = FIRST_INFERLET_TRACK
    for inferlet, slices in by_inferlet.items():
        for number, lane in enumerate(_lanes(slices), 1):
            label = inferlet if number == 1 else f"{inferlet} ({number})"
            yield from _name("thread_name", process, track, label)
            for made in lane.slices:
                yield from _slice_events(process, track, made)
            track += 1


def _of_command(command: CommandRecord, clock: _Clock) -> _Slice:
    begins, ends = clock.span(command.submitted_at, command.finished_at)
    started = clock.read(command.started_at) if command.started_at else ends
    started = min(max(started, begins), ends)
    parts = [_Slice("queued", "command", begins, started)]
    if command.started_at:
        batch = {"step": command.step, "size": command.batch_size}
        parts.append(_Slice("in batch", "command", started, ends, batch))
    return _Slice(
        command.kind.lower(),
        "command",
        begins,
        ends,
        {
            "queue": command.queue,
            "ticket": command.ticket,
            "tokens": command.num_tokens,
            "outcome": command.outcome,
        },
        parts,
    )


@dataclass(slots=True)
class _Lane:
    """Slices that lie apart or inside of each other.

    Attributes:
        opened: Those that have not ended where the latest one begins, outermost first.
    """

    slices: list[_Slice] = field(default_factory=list["_Slice"])
    opened: list[_Slice] = field(default_factory=list["_Slice"])

    def has_room(self, made: _Slice) -> bool:
        """Say whether the slice fits; none begins before those that are there."""
        while self.opened and self.opened[-1].ends <= made.begins:
            self.opened.pop()
        if not self.opened:
            return True
        return self.opened[-1].may_hold and made.ends <= self.opened[-1].ends

    def add(self, made: _Slice) -> None:
        """Add one that fits."""
        self.slices.append(made)
        self.opened.append(made)


def _lanes(slices: Iterable[_Slice]) -> list[_Lane]:
    """Divide slices into as few lanes as they need."""
    lanes: list[_Lane] = []
    for made in sorted(slices, key=lambda s: (s.begins, -s.ends, not s.may_hold)):
        lane = next((lane for lane in lanes if lane.has_room(made)), None)
        if lane is None:
            lane = _Lane()
            lanes.append(lane)
        lane.add(made)
    return lanes


def _slice_events(process: int, track: int, made: _Slice) -> Iterator[Event]:
    yield {
        "ph": "X",
        "name": made.name,
        "cat": made.category,
        "pid": process,
        "tid": track,
        "ts": made.begins / 1000,
        "dur": (made.ends - made.begins) / 1000,
        "args": dict(made.args),
    }
    for part in made.parts:
        yield from _slice_events(process, track, part)


def _counter(process: int, name: str, at: int, value: int) -> Event:
    return {
        "ph": "C",
        "name": name,
        "cat": "counter",
        "pid": process,
        "tid": 0,
        "ts": at / 1000,
        "args": {"value": value},
    }


def _name(what: str, process: int, track: int, name: str) -> Iterator[Event]:
    sort = what.replace("_name", "_sort_index")
    for event, args in (
        (what, {"name": name}),
        (sort, {"sort_index": track or process}),
    ):
        yield {"ph": "M", "name": event, "pid": process, "tid": track, "args": args}
