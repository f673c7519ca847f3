"""``pie run --record`` and ``pie replay``, as a user types them."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.run.setup import PACKAGED_MODEL

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from tests.cli.conftest import Done, Pie

PROGRAM = """
import random, time, uuid
from inferlet_py import *

BEGUN = time.time()

@inferlet
async def main(url: str = "") -> dict[str, object]:
    async with Context() as ctx:
        await ctx.fill("Once upon a time")
        sampler = TopP(0.95, temperature=1.2)
        async for chunk in ctx.generate(max_tokens=24, sampler=sampler):
            await send(chunk.text)
    page = (await http_get(url)).text() if url else ""
    begun = current_time()
    time.sleep(0.01)
    with move_on_after(0.01) as scope:
        await sleep(60)
    heard = [message async for message in messages()]
    return {"page": page, "heard": heard, "late": scope.cancelled_caught,
            "seconds": current_time() - begun, "number": random.random(), "id": str(uuid.uuid4()),
            "at": time.time(), "begun": BEGUN, "ticks": time.perf_counter()}
"""


class _Handler(BaseHTTPRequestHandler):
    num_requests = 0

    def do_GET(self) -> None:
        type(self).num_requests += 1
        body = f"page {self.num_requests}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Generator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def run(torch_is_there: None, pie: Pie, program: Path, tmp_path: Path) -> Done:
    """A recorded run of the program, in ``run.pie``."""
    return record(pie, tmp_path, program, [])


def record(
    pie: Pie, folder: Path, program: Path, flags: list[str], *arguments: str
) -> Done:
    done = pie(
        *("run", "--model", PACKAGED_MODEL, *flags),
        *("--record", folder / "run.pie", program, *arguments),
        stdin=b"one\ntwo\n",
    )
    assert done.code == 0, done.err
    return done


def test_a_sampled_run_replays_to_the_byte_without_its_model_and_its_server(
    torch_is_there: None,
    pie: Pie,
    program: Path,
    tmp_path: Path,
    mode_flags: list[str],
    server: HTTPServer,
) -> None:
    address = f"127.0.0.1:{server.server_port}"
    flags = [*mode_flags, "--allow-http", address]
    recorded = record(pie, tmp_path, program, flags, "--url", f"http://{address}/")
    num_requests = _Handler.num_requests
    assert f'"page": "page {num_requests}"' in recorded.out
    assert '"heard": ["one", "two"]' in recorded.out
    for mode in ("wasm", "native"):
        done = pie(
            *("replay", tmp_path / "run.pie", "--mode", mode), PIE_MODEL="/nowhere"
        )
        assert (done.code, done.out) == (0, recorded.out), done.err
        assert "calls as recorded" in done.err
    assert _Handler.num_requests == num_requests


def test_a_program_that_does_otherwise_is_told_with_the_call_and_its_line(
    pie: Pie, run: Done, program: Path, tmp_path: Path, mode: str
) -> None:
    other = tmp_path / "other.py"
    other.write_text(PROGRAM.replace("Once upon", "Twice upon"))
    done = pie("replay", tmp_path / "run.pie", other, "--mode", mode)
    assert done.code == 1
    assert "the program is not the one that was recorded" in done.err
    assert "is not as recorded: recorded was " in done.err
    assert f"(at {other.name}:" in done.err or f"(at {other}:" in done.err
    assert "in main)" in done.err


def test_a_program_that_has_moved_is_asked_for(
    pie: Pie, run: Done, program: Path, tmp_path: Path
) -> None:
    moved = program.rename(tmp_path / "moved.py")
    done = pie("replay", tmp_path / "run.pie")
    assert done.code == 2
    assert "which is not there: name it" in done.err
    assert pie("replay", tmp_path / "run.pie", moved).out == run.out


def test_a_damaged_file_is_refused_in_one_line(
    pie: Pie, run: Done, tmp_path: Path
) -> None:
    file = tmp_path / "run.pie"
    file.write_bytes(file.read_bytes().replace(b" time", b" tame", 1))
    done = pie("replay", file)
    assert (done.code, done.out) == (2, "")
    assert "run.pie is damaged: its checksum" in done.err
    assert done.err.count("\n") == 1


def test_a_program_that_raised_raises_again(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = tmp_path / "raises.py"
    program.write_text(
        "from inferlet_py import *\n@inferlet\nasync def main():\n"
        "    await send('x')\n    raise ValueError(current_time())\n"
    )
    file = tmp_path / "run.pie"
    recorded = pie(
        "run", "--model", random_model, *mode_flags, "--record", file, program
    )
    done = pie("replay", file)
    assert done.code == recorded.code == 1
    assert done.err.splitlines()[-1] == recorded.err.splitlines()[-1]
    assert "ValueError: " in done.err


@pytest.mark.parametrize("flag", ["--watch", "--warm=1"])
def test_only_one_run_from_its_start_is_recorded(
    pie: Pie, random_model: Path, program: Path, tmp_path: Path, flag: str
) -> None:
    flags = ("run", "--model", random_model, "--record", tmp_path / "f", flag, program)
    done = pie(*flags)
    assert done.code == 2
    assert "--record is for one run from its start" in done.err
