"""What a guest finds of an operating system: clocks, randomness, a log, and nothing else."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
from wasmtime import component

from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.fiber import Fiber
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.application.wasm.values import U64
from pie_trio.application.wasm.wasi import make_wasi, wasi_versions
from pie_trio.config import WasmConfig
from pie_trio.errors import GuestFailedError, GuestTrappedError
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.host.instance_log import LogLine
    from pie_trio.application.lifecycle.instances import Launcher

LIMIT_SECONDS = 60

NEWER = """
(component
  (import "wasi:random/random@{version}"
    (instance $random (export "get-random-u64" (func (result u64)))))
  (core func $draw (canon lower (func $random "get-random-u64")))
  (core module $module
    (import "host" "draw" (func $draw (result i64)))
    (func (export "run") (result i64) call $draw))
  (core instance $made
    (instantiate $module (with "host" (instance (export "draw" (func $draw))))))
  (func $run (result u64) (canon lift (core func $made "run")))
  (instance $exported (export "run" (func $run)))
  (export "test:newer/program" (instance $exported)))
"""


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


async def run_component(text: str, folder: Path) -> int:
    config = WasmConfig(cache_directory=folder)
    with WasmRuntime(config, CompileCache(folder)) as runtime:
        compiled = component.Component(runtime.engine, text)
        linked = runtime.link(compiled, [], random_bytes=lambda count: b"\x07" * count)
        with Fiber(linked, None, memory_bytes=1 << 20) as fiber:
            with trio.fail_after(LIMIT_SECONDS):
                await fiber.instantiate()
                fiber.start("test:newer/program", "run")
                found: int = await fiber.finish(U64)
    return found


@pytest.mark.parametrize("version", ["0.2.0", "0.2.9", "0.2.12", "0.2.99"])
async def test_a_component_of_another_tool_finds_its_version_of_wasi(
    tmp_path: Path, version: str
) -> None:
    found = await run_component(NEWER.format(version=version), tmp_path)
    assert found == 0x0707070707070707


async def test_a_later_wasi_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with pytest.raises(GuestTrappedError, match=r"random@0\.3\.0"):
        await run_component(NEWER.format(version="0.3.0"), tmp_path)


def test_a_component_may_be_made_of_parts_with_several_versions() -> None:
    names = ["wasi:io/poll@0.2.9", "wasi:cli/exit@0.2.12", "wasi:io/error@0.3.0"]
    versions = wasi_versions([*names, "pie:inferlet/types@0.1.0"])
    assert versions == {"0.2.9", "0.2.12"}
    made = [interface.name for interface in make_wasi(lambda: None, versions=versions)]
    assert set(names[:2]) < set(made)
    assert len(made) == len(set(made))


def test_a_seed_for_hash_tables_is_two_numbers_of_sixteen_random_bytes() -> None:
    made = make_wasi(lambda: None, lambda n: bytes(range(n)), versions=["0.2.9"])
    (seed,) = [i for i in made if i.name == "wasi:random/insecure-seed@0.2.9"]
    low, high = seed.functions["insecure-seed"].call(None)
    assert low.to_bytes(8, "little") + high.to_bytes(8, "little") == bytes(range(16))
