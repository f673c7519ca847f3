"""The rules of Chrome's trace event format, as far as viewers insist on them."""

from __future__ import annotations

from typing import Any

NEEDED = {
    "X": {"name", "cat", "ts", "dur", "pid", "tid", "args"},
    "C": {"name", "cat", "ts", "pid", "tid", "args"},
    "i": {"name", "cat", "ts", "pid", "tid", "args", "s"},
    "M": {"name", "pid", "tid", "args"},
}
METADATA = {
    "process_name": ("name", str),
    "process_sort_index": ("sort_index", int),
    "thread_name": ("name", str),
    "thread_sort_index": ("sort_index", int),
}


def check_trace_events(trace: Any) -> None:
    """Assert that a viewer shows all of a trace, and shows it right."""
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    assert trace["displayTimeUnit"] in ("ms", "ns")
    named: set[tuple[str, int, int]] = set()
    used: set[tuple[int, int]] = set()
    slices: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in trace["traceEvents"]:
        phase = event["ph"]
        assert set(event) == {"ph", *NEEDED[phase]}, event
        assert isinstance(event["name"], str)
        assert type(event["pid"]) is type(event["tid"]) is int
        assert isinstance(event["args"], dict)
        track = event["pid"], event["tid"]
        if phase == "M":
            field, kind = METADATA[event["name"]]
            assert list(event["args"]) == [field]
            assert type(event["args"][field]) is kind
            assert (event["name"], *track) not in named, "a track has one name"
            named.add((event["name"], *track))
            continue
        assert event["ts"] >= 0
        if phase == "C":
            assert all(type(v) in (int, float) for v in event["args"].values())
            continue
        used.add(track)
        if phase == "i":
            assert event["s"] in ("t", "p", "g")
            continue
        assert event["dur"] >= 0
        begins, length = round(event["ts"] * 1000), round(event["dur"] * 1000)
        slices.setdefault(track, []).append((begins, begins + length))
    for process, thread in used:
        assert ("process_name", process, 0) in named
        assert ("thread_name", process, thread) in named
    for found in slices.values():
        _check_nesting(found)


def _check_nesting(slices: list[tuple[int, int]]) -> None:
    """Slices of a track lie inside of each other or apart, or viewers cut them."""
    opened: list[int] = []
    for begins, ends in sorted(slices, key=lambda s: (s[0], -s[1])):
        while opened and opened[-1] <= begins:
            opened.pop()
        assert not opened or ends <= opened[-1], "slices of a track overlap"
        opened.append(ends)
