"""A whole server that is killed at any moment, and started again: nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.server.keys import make_key
from pie_trio.application.server.keys_tables import open_key_tables
from pie_trio.client import Client, DeniedError, ProgramFailedError, RemoteError
from tests.cli.conftest import LIMIT_SECONDS, ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator

PROGRAM = "from inferlet_py import *\n\n@inferlet\nasync def main({}):\n    {}\n"
PROGRAMS = {
    "keep": PROGRAM.format("key: str", "await store.set(key, key)"),
    "look": PROGRAM.format("", "return await store.list_keys(limit=10_000)"),
    "exports": PROGRAM.format(
        "",
        "async with Context() as context:\n"
        "        await context.fill('hello')\n"
        "        context.export('mine', persistent=True)\n"
        "        context.export('bobs', persistent=True, permission=['bob'])\n"
        "        context.export('brief', persistent=True, seconds_to_live=1e-3)\n"
        "        context.export('ends')",
    ),
    "imports": PROGRAM.format(
        "name: str, refill: bool = False",
        "context = Context.from_export(name, refill=refill)\n"
        "    if refill: context.export(name, persistent=True)\n"
        "    return len(context)",
    ),
    "lists": PROGRAM.format(
        "", "return [[e.name, e.num_pages] for e in Queue().list_exports()]"
    ),
    "waits": PROGRAM.format("", "await receive()"),
}


@contextmanager
def serving(
    data: Path, log_path: Path | None = None
) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Run a server, and wait until it serves."""
    log_path = log_path or data.parent / "stderr"
    command = [sys.executable, "-m", "tests.faults.serve", "--port", "0", "--warm", "0"]
    command += ["--data-dir", str(data), "--keys", "on", "--grace", "0.5"]
    with log_path.open("w") as log:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
        ) as process:
            try:
                assert process.stdout is not None
                url = process.stdout.readline().strip()
                assert url, log_path.read_text()
                yield process, url
            finally:
                process.kill()


class Writer:
    """Changes a server as long as it lives, and notes what was acknowledged."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.stored = set[str]()
        self.programs = dict[str, int]()
        self._number = 0

    async def write(self, url: str, count: int, end: Callable[[], object]) -> None:
        """Let the server end once so many changes were acknowledged, with others on their way."""
        num_left = count

        async def repeat(change: Callable[[Client], Awaitable[None]]) -> None:
            nonlocal num_left
            async with Client(url, self.key) as client:
                try:
                    while True:
                        await change(client)
                        num_left -= 1
                        if num_left == 0:
                            end()
                except RemoteError:  # it has ended
                    assert num_left <= 0

        async with trio.open_nursery() as nursery:
            for change in (self._store, self._store, self._upload, self._upload):
                nursery.start_soon(repeat, change)

    async def _store(self, client: Client) -> None:
        self._number += 1
        key = f"key-{self._number}"
        await client.call("keep", key=key)
        self.stored.add(key)

    async def _upload(self, client: Client) -> None:
        self._number += 1
        number, name = self._number, f"program-{self._number}"
        text = PROGRAM.format("", f"return {number}")
        await client.deploy(text.encode(), name)
        self.programs[name] = number

    async def check(self, url: str) -> None:
        """See that all that was acknowledged is there."""
        async with Client(url, self.key) as client:
            assert self.stored <= set(await client.call("look"))
            names = {program.name for program in await client.programs()}
            assert names >= {*self.programs, *PROGRAMS}
            for name in random.Random(0).sample(sorted(self.programs), 2):
                assert await client.call(name) == self.programs[name]


async def test_after_any_end_programs_keys_and_the_store_are_there(
    tmp_path: Path,
) -> None:
    data, chance = tmp_path / "data", random.Random(0)
    key, text = make_key("ann", ["launch", "upload"], created_at=0.0)
    gone, gone_text = make_key("bob", ["launch"], created_at=0.0)
    with open_key_tables(data) as tables:
        tables.add(key)
        tables.add(gone)
        tables.remove(gone.key_id)
    writer = Writer(text)
    with trio.fail_after(LIMIT_SECONDS):
        for number in (signal.SIGKILL, signal.SIGTERM):
            with serving(data) as (process, url):
                if writer.programs:
                    await writer.check(url)
                    await check_export_is_empty(url, text)
                await deploy(url, text)

                def end(number: int = number, pid: int = process.pid) -> None:
                    os.kill(pid, number)

                await writer.write(url, chance.randrange(10, 40), end)
                code = await trio.to_thread.run_sync(process.wait)
                assert code == (0 if number == signal.SIGTERM else -number)
        with serving(data) as (_, url):
            await writer.check(url)
            async with Client(url, gone_text) as client:
                with pytest.raises(DeniedError):
                    await client.programs()


async def deploy(url: str, key: str, *, exports: bool = True) -> None:
    """Send all programs, and let one make exports."""
    async with Client(url, key) as client:
        for name, program in PROGRAMS.items():
            await client.deploy(program.encode(), name)
        if exports:
            await client.call("exports")
            await client.call("imports", name="mine")


async def check_export_is_empty(url: str, key: str) -> None:
    """Whoever imports what a server had that was killed is told so, and can make it again."""
    async with Client(url, key) as client:
        assert await client.call("lists") == [["bobs", 0], ["mine", 0]]
        told = "ExportLostError.*'mine' that ann made .* is empty.*started again"
        with pytest.raises(ProgramFailedError, match=told):
            await client.call("imports", name="mine")
        for gone in ("brief", "ends", "nothing"):
            with pytest.raises(ProgramFailedError, match=f"no export '{gone}'"):
                await client.call("imports", name=gone)
        length = await client.call("imports", name="mine", refill=True)
        assert await client.call("imports", name="mine") == length > 0


async def test_what_a_killed_server_has_forgotten_is_who_held_the_pages_alone(
    tmp_path: Path,
) -> None:
    """Names and permissions of exports are as they were; nobody takes a name over."""
    data, texts = tmp_path / "data", dict[str, str]()
    with open_key_tables(data) as tables:
        for user in ("ann", "bob", "cid"):
            key, texts[user] = make_key(user, ["launch", "upload"], created_at=0.0)
            tables.add(key)
    with trio.fail_after(LIMIT_SECONDS):
        with serving(data) as (process, url):
            for text in texts.values():
                await deploy(url, text, exports=text == texts["ann"])
            process.kill()
            await trio.to_thread.run_sync(process.wait)
        with serving(data) as (process, url):
            async with Client(url, texts["bob"]) as bob:
                assert await bob.call("lists") == [["ann/bobs", 0]]
                with pytest.raises(ProgramFailedError, match="'bobs' that ann made"):
                    await bob.call("imports", name="ann/bobs")
                await bob.call("exports")  # names of his own
                assert ["ann/bobs", 0] in await bob.call("lists")
            async with Client(url, texts["cid"]) as cid:
                with pytest.raises(ProgramFailedError, match="no export 'ann/bobs'"):
                    await cid.call("imports", name="ann/bobs")
            async with Client(url, texts["ann"]) as ann:
                await ann.call("exports")
            async with Client(url, texts["bob"]) as bob:
                await bob.call("imports", name="ann/bobs")


async def test_a_log_on_a_full_disk_stops_nobody(tmp_path: Path) -> None:
    data = tmp_path / "data"
    key, text = make_key("ann", ["launch", "upload"], created_at=0.0)
    with open_key_tables(data) as tables:
        tables.add(key)
    with trio.fail_after(LIMIT_SECONDS):
        with serving(data, Path("/dev/full")) as (process, url):
            await deploy(url, text)
            async with Client(url, text) as client:
                await client.launch("waits")
            process.terminate()  # it says that it stops, and ends what runs
            assert await trio.to_thread.run_sync(process.wait) == 0
