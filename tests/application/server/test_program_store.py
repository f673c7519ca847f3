"""The store of programs on the disk: whenever its process ends, each is there or is not."""

from __future__ import annotations

import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio

from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.server.failures import ProgramStoreError
from pie_trio.application.server.owners import LOCAL, Owner
from pie_trio.application.server.program_store import ProgramStore, open_program_store
from pie_trio.errors import ConfigError, NotFoundError
from tests.conftest import HERE

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

PUT_FOR_EVER = """
import sys, trio
from pathlib import Path
from tests.application.server.test_program_store import open_store, put

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        number = 0
        while True:
            name = f"p{number % 5}"
            await put(store, name, f"x = {number}\\n" + "#" * 200_000)
            print(name, number, flush=True)
            number += 1

trio.run(main)
"""


async def accept(_source: object) -> None:
    await trio.lowlevel.checkpoint()


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def put(
    store: ProgramStore, name: str, text: str, *, owner: Owner = LOCAL
) -> str:
    _, outcome = await store.put(name, once(text.encode()), owner=owner, check=accept)
    return outcome


async def text_of(store: ProgramStore, name: str, *, owner: Owner = LOCAL) -> str:
    found = await store.find(name, owner=owner)
    assert isinstance(found.source, SourceProgram)
    return found.source.modules["app.py"]


@asynccontextmanager
async def open_store(folder: Path) -> AsyncGenerator[ProgramStore]:
    async with open_program_store(folder, built_in=folder / "none") as store:
        yield store


async def test_programs_survive_the_end_of_the_server(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await put(store, "one", "x = 1")
    async with open_store(tmp_path) as store:
        assert await text_of(store, "one") == "x = 1"
        assert await put(store, "one", "x = 1") == "unchanged"


def put_until_killed(folder: Path, num_lines: int) -> list[list[str]]:
    """Put programs in a process, kill it after some, and return what it has acknowledged."""
    with subprocess.Popen(
        [sys.executable, "-c", PUT_FOR_EVER, str(folder)],
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        acknowledged = [process.stdout.readline().split() for _ in range(num_lines)]
        process.kill()
        return acknowledged + [line.split() for line in process.stdout]


@pytest.mark.parametrize("num_lines", [1, 4, 7, 12, 23])
async def test_a_kill_at_any_moment_leaves_whole_programs(
    tmp_path: Path, num_lines: int
) -> None:
    acknowledged = put_until_killed(tmp_path, num_lines)
    last = {line[0]: int(line[1]) for line in acknowledged if len(line) == 2}
    assert len(last) >= min(num_lines, 5)
    async with open_store(tmp_path) as store:
        hashes = set()
        for row in store.rows(LOCAL):
            number = int((await text_of(store, row.name)).split()[2])
            # What was acknowledged, or what was on its way then.
            assert number in (
                last.get(row.name, -5),
                last.get(row.name, number - 5) + 5,
            )
            hashes.add(row.sha256)
        assert hashes == {path.name for path in (tmp_path / "programs").iterdir()}
        assert list((tmp_path / "uploads").iterdir()) == []


async def test_owners_have_programs_of_their_own(tmp_path: Path) -> None:
    ann, ben = Owner("ann"), Owner("ben")
    async with open_store(tmp_path) as store:
        await put(store, "one", "x = 'ann'", owner=ann)
        await put(store, "one", "x = 'ben'", owner=ben)
        assert await text_of(store, "one", owner=ann) == "x = 'ann'"
        assert list(store.sources(ann)) == ["one"]
        found = store.sources(ann)["one"]
        assert isinstance(found, SourceProgram)
        assert found.modules == {"app.py": "x = 'ann'"}
        await store.delete("one", owner=ann)
        assert "one" not in store.sources(ann)
        assert await text_of(store, "one", owner=ben) == "x = 'ben'"
        with pytest.raises(NotFoundError):
            await store.find("one", owner=ann)


async def test_two_who_put_the_same_name_at_once_leave_one_of_theirs(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path) as store:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(put, store, "one", f"x = {number % 3}")
        (row,) = store.rows(LOCAL)
        assert (await text_of(store, "one")).startswith("x = ")
        assert [p.name for p in (tmp_path / "programs").iterdir()] == [row.sha256]


async def test_a_cancelled_upload_leaves_nothing(tmp_path: Path) -> None:
    async def never_ends() -> AsyncIterator[bytes]:
        yield b"x = 1"
        scope.cancel()
        await trio.sleep_forever()

    async with open_store(tmp_path) as store:
        with trio.CancelScope() as scope:
            await store.put("one", never_ends(), owner=LOCAL, check=accept)
        assert scope.cancelled_caught
        assert store.rows(LOCAL) == []
        assert list((tmp_path / "uploads").iterdir()) == []


async def test_a_file_that_was_damaged_is_not_run(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await put(store, "one", "x = 1")
    (path,) = (tmp_path / "programs").iterdir()
    path.write_text("x = 2")
    async with open_store(tmp_path) as store:
        with pytest.raises(ProgramStoreError, match="damaged"):
            await store.find("one", owner=LOCAL)
        path.unlink()
        with pytest.raises(ProgramStoreError, match="vanished"):
            await store.find("one", owner=LOCAL)
        assert await put(store, "one", "x = 3") == "replaced"
        assert await text_of(store, "one") == "x = 3"


async def test_a_row_is_written_when_its_file_is_there(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        (tmp_path / "programs").rmdir()
        with pytest.raises(ProgramStoreError):
            await put(store, "one", "x = 1")
        assert store.rows(LOCAL) == []
    async with open_store(tmp_path) as store:
        assert store.rows(LOCAL) == []


async def test_a_directory_belongs_to_one_server(tmp_path: Path) -> None:
    async with open_store(tmp_path):
        with pytest.raises(ConfigError, match="another server uses"):
            async with open_store(tmp_path):
                pass  # pragma: no cover


@pytest.mark.parametrize(
    "content", [b"nonsense" * 1000, b"SQLite format 3\0" + b"x" * 5000]
)
async def test_a_database_that_is_none_is_refused(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "programs.db").write_bytes(content)
    with pytest.raises(ConfigError, match=r"programs\.db"):
        async with open_store(tmp_path):
            pass  # pragma: no cover
