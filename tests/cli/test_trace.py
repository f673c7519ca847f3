"""``pie run --trace`` and ``--explain``, and what a program says for them, in both modes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.application.chrome_trace import check_trace_events
from tests.cli.conftest import LIMIT_SECONDS, ROOT, Pie
from tests.cli.test_run import write_program

GENERATE = (
    "async with Context() as ctx:\n"
    "    with span('draft'):\n"
    "        await ctx.fill('x')\n"
    "        await ctx.generate(max_tokens=4, stop_tokens=[]).tokens()\n"
)


def read_trace(path: Path) -> list[dict[str, Any]]:
    trace = json.loads(path.read_text())
    check_trace_events(trace)
    assert list(path.parent.glob(".*part")) == [], "nothing else is left there"
    events: list[dict[str, Any]] = trace["traceEvents"]
    return events


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["name"] == name]


def test_a_trace_has_the_steps_the_commands_and_the_spans(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program, trace = write_program(tmp_path, GENERATE), tmp_path / "trace.json"
    trace.write_text("old")
    done = pie(
        *("run", *mode_flags, "--model", random_model, "--trace", trace, program)
    )
    assert done.code == 0, done.err
    events = read_trace(trace)
    (draft,) = named(events, "draft")
    forwards = named(events, "forward")
    assert len(named(events, "forward x1")) == len(forwards) == 4
    for forward in forwards:
        assert forward["tid"] == draft["tid"]
        assert draft["ts"] <= forward["ts"]
        assert forward["ts"] + forward["dur"] <= draft["ts"] + draft["dur"]
    tracks = {event["args"]["name"] for event in named(events, "thread_name")}
    assert "device" in tracks
    assert any(track.startswith("program-") for track in tracks)


def test_a_program_that_fails_leaves_its_trace(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, GENERATE + "raise ValueError('on purpose')")
    trace = tmp_path / "trace.json"
    done = pie(
        *("run", *mode_flags, "--model", random_model, "--trace", trace, program)
    )
    assert done.code == 1
    assert "ValueError: on purpose" in done.err
    assert len(named(read_trace(trace), "draft")) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_program_that_is_interrupted_leaves_its_trace(
    random_model: Path, tmp_path: Path, mode_flags: list[str], number: signal.Signals
) -> None:
    program = write_program(
        tmp_path,
        f"{GENERATE}with span('waiting'):\n    await send('x')\n    await sleep(600)\n",
    )
    trace = tmp_path / "trace.json"
    flags = [*mode_flags, "--model", random_model, "--trace", trace, "--explain"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pie_trio", "run", *map(str, flags), str(program)],
        cwd=ROOT,
        env=os.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        assert process.stdout.read(1) == b"x"
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_SECONDS)
    finally:
        process.kill()
    assert process.returncode == 128 + number, err.decode()
    (waiting,) = named(read_trace(trace), "waiting")
    assert waiting["dur"] > 0
    assert b"4 steps ran 4 commands" in err


def test_a_trace_can_go_to_a_pipe(pie: Pie, random_model: Path, tmp_path: Path) -> None:
    program = write_program(tmp_path, GENERATE)
    flags = ("--native", "--model", random_model, "--trace", "/dev/stdout")
    done = pie("run", *flags, program)
    assert done.code == 0, done.err
    check_trace_events(json.loads(done.out))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "is a folder: name a file, as"),
        ("missing/trace.json", "there is no folder"),
    ],
)
def test_a_path_that_cannot_be_written_is_an_error_before_anything_runs(
    pie: Pie,
    random_model: Path,
    tmp_path: Path,
    mode_flags: list[str],
    path: str,
    message: str,
) -> None:
    program = write_program(tmp_path, "print('has run')")
    flags = (*mode_flags, "--model", random_model, "--trace", tmp_path / path)
    done = pie("run", *flags, program)
    assert done.code == 2
    assert message in done.err
    assert "has run" not in done.err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("body", "code"), [("pass", 2), ("raise ValueError('on purpose')", 1)]
)
def test_a_trace_that_cannot_be_written_does_not_hide_why_a_program_failed(
    pie: Pie, random_model: Path, tmp_path: Path, body: str, code: int
) -> None:
    program = write_program(tmp_path, body)
    flags = ("--native", "--model", random_model, "--trace", "/dev/full")
    done = pie("run", *flags, program)
    assert done.code == code
    assert "cannot be written to /dev/full (No space left on device)" in done.err
    assert ("on purpose" in done.err) == (code == 1)


def test_batches_are_explained_at_the_end(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, GENERATE + "return 'done'")
    done = pie("run", *mode_flags, "--model", random_model, "--explain", program)
    assert (done.code, done.out) == (0, "done\n")
    title = f"model {random_model.name}, policy rendezvous: steps of the device"
    assert title in done.err
    assert "batch of 1" in done.err
    assert "4 steps ran 4 commands with 5 new tokens: 1 a step in the" in done.err


def test_the_help_of_a_program_is_not_a_run_to_report_of(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program, trace = write_program(tmp_path, "pass"), tmp_path / "trace.json"
    flags = (*mode_flags, "--model", random_model, "--trace", trace, "--explain")
    done = pie("run", *flags, program, "--help")
    assert done.code == 0
    assert not trace.exists()
    assert "steps" not in done.err


# ---- what programs call ----------------------------------------------------------------


def run(
    pie: Pie, folder: Path, flags: list[str], model: Path, body: str, *options: object
) -> tuple[Any, str]:
    program = write_program(folder, body)
    done = pie("run", *flags, "--model", model, *options, program)
    assert done.code == 0, done.err
    return json.loads(done.out), done.err


def test_a_log_line_carries_fields(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    body = (
        "log('slow', level='warning', seconds=3, where={'a': [1]}, what=main)\n"
        "log('cut', word='a\\u2028b')\n"
        "return 1"
    )
    _, err = run(pie, tmp_path, mode_flags, random_model, body)
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert lines[0].startswith('[warning] slow {"seconds": 3, "where": {"a": [1]}, ')
    assert lines[1] == '[info] cut {"word": "a\\u2028b"}'


def test_a_program_may_ask_about_itself(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    body = (
        "async with Context() as ctx:\n"
        "    await ctx.fill('x')\n"
        "    await ctx.forward()\n"
        "    pages = debug_query('pages')\n"
        "trace = debug_query('trace')\n"
        "try: debug_query('nonsense')\n"
        "except BadArgumentError as error: refusal = str(error)\n"
        "return [get_owner(), pages, trace, debug_query('limits'), refusal]"
    )
    found, _ = run(pie, tmp_path, mode_flags, random_model, body)
    owner, pages, trace, limits, refusal = found
    assert owner == "local"
    assert pages[random_model.name]["on_device"] == 1
    assert [command["outcome"] for command in trace] == ["ok"]
    assert limits["max_in_flight"] > 0
    assert "ask one of limits, usage, pages, tickets, trace" in refusal


def test_spans_end_also_where_their_block_fails_and_may_be_entered_again(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    body = (
        "part = span('part \\ud800')\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        with part, part: 1 / 0\n"
        "    except ZeroDivisionError: pass\n"
        "async with Context() as ctx: await ctx.forward([1])\n"
        "return 1"
    )
    trace = tmp_path / "trace.json"
    run(pie, tmp_path, mode_flags, random_model, body, "--trace", trace)
    events = read_trace(trace)
    (first_forward,) = named(events, "forward")
    parts = named(events, "part ?")
    assert len(parts) == 4
    assert all(p["ts"] + p["dur"] <= first_forward["ts"] for p in parts)


def test_suspended_pages_come_back_with_what_they_held(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    body = (
        "async with Context() as ctx:\n"
        "    await ctx.fill('x' * 40)\n"
        "    before = await ctx.sample(Greedy())\n"
        "    await suspend_pages()\n"
        "    (pages,) = debug_query('pages').values()\n"
        "    after = await ctx.sample(Greedy())\n"
        "    return [pages['on_device'], pages['in_host_memory'], before == after]"
    )
    found, _ = run(pie, tmp_path, mode_flags, random_model, body)
    on_device, in_host_memory, is_same = found
    assert on_device == 0
    assert in_host_memory > 0
    assert is_same


def test_a_program_that_hears_of_pressure_can_give_pages_back(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(
        tmp_path,
        "if is_child:\n"
        "    async with Context() as ctx: await ctx.forward([1] * 40)\n"
        "    return\n"
        "heard = []\n"
        "async with Context() as spare:\n"
        "    async def listen():\n"
        "        await memory_pressure()\n"
        "        spare.close()\n"
        "        heard.append('pressure')\n"
        "    await spare.forward([1] * 48)\n"  # three pages of four
        "    async with open_nursery() as nursery:\n"
        "        nursery.start_soon(listen)\n"
        "        async with spawn(is_child=True): pass\n"
        "return heard",
        "is_child: bool = False",
    )
    flags = (*mode_flags, "--model", random_model, "--kv-pages", 4)
    done = pie("run", *flags, program)
    assert (done.code, done.out) == (0, '["pressure"]\n'), done.err


def test_waiting_for_pressure_can_be_given_up(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    body = (
        "with move_on_after(0) as scope: await memory_pressure()\n"
        "return [scope.cancelled_caught, debug_query('tickets')['open']]"
    )
    found, _ = run(pie, tmp_path, mode_flags, random_model, body)
    assert found == [True, 0]
