"""What a guest finds of an operating system: clocks, randomness, a log, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.errors import GuestFailedError, GuestTrappedError
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.application.lifecycle.instances import Launcher

LIMIT_SECONDS = 60


async def run(launcher: Launcher, body: str) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program_of(body), {}).run())


async def test_time_passes_and_sleep_takes_as_long_as_it_says(
    open_fake: OpenLauncher,
) -> None:
    body = """
import time
started = time.monotonic(), current_time()
time.sleep(0.02)
return [time.monotonic() - started[0], current_time() - started[1], time.time()]
"""
    async with open_fake() as launcher:
        monotonic, ours, wall = await run(launcher, body)
    assert monotonic >= 0.02
    assert ours >= 0.02
    assert wall > 1.7e9


async def test_a_sleeping_guest_does_not_hold_up_the_others(
    open_fake: OpenLauncher,
) -> None:
    finished: list[str] = []

    async def note(name: str, body: str) -> None:
        await run(launcher, body)
        finished.append(name)

    async with open_fake() as launcher, trio.open_nursery() as nursery:
        nursery.start_soon(note, "sleeper", "import time; time.sleep(0.5)")
        nursery.start_soon(note, "other", "return 1")
    assert finished == ["other", "sleeper"]


async def test_every_instance_draws_other_random_numbers(
    open_fake: OpenLauncher,
) -> None:
    body = "import random, os, uuid\nreturn [random.random(), os.urandom(4).hex(), str(uuid.uuid4())]"
    async with open_fake() as launcher:
        first = await run(launcher, body)
        second = await run(launcher, body)
    assert all(a != b for a, b in zip(first, second, strict=True))


async def test_what_a_program_prints_is_its_log(open_fake: OpenLauncher) -> None:
    lines: list[LogLine] = []
    body = "import sys\nprint('out', 1)\nprint('err', file=sys.stderr)\nlog('said', level='warning')\nprint('no end', end='')"
    async with open_fake() as launcher:
        instance = launcher.prepare(program_of(body), {}, on_log=lines.append)
        await instance.run()
    assert [(line.source, line.text) for line in lines] == [
        ("stdout", "out 1"),
        ("stderr", "err"),
        ("warning", "said"),
        ("stdout", "no end"),
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("open('/etc/passwd')", "FileNotFoundError"),
        ("open('new', 'w')", "FileNotFoundError"),
        ("import os; os.listdir('/')", "FileNotFoundError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import socket; socket.getaddrinfo('localhost', 80)", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("import subprocess; subprocess.run(['ls'])", "OSError"),
        ("import requests", "ModuleNotFoundError"),
    ],
)
async def test_what_is_not_granted_is_an_ordinary_python_error(
    open_fake: OpenLauncher, body: str, kind: str
) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError) as failure:
            await run(launcher, body)
    assert failure.value.kind.split(".")[-1] == kind
    assert 'File "app.py", line 5' in failure.value.traceback


async def test_there_are_no_arguments_no_environment_and_no_input(
    open_fake: OpenLauncher,
) -> None:
    body = "import os, sys\nreturn [sys.argv[1:], dict(os.environ), sys.stdin.read()]"
    async with open_fake() as launcher:
        argv, environment, text = await run(launcher, body)
    assert argv == []
    assert "PATH" not in environment
    assert text == ""


async def test_ending_the_interpreter_ends_the_instance_with_a_message(
    open_fake: OpenLauncher,
) -> None:
    async with open_fake() as launcher:
        with pytest.raises(GuestTrappedError, match="ended its interpreter"):
            await run(launcher, "import os; os._exit(0)")
