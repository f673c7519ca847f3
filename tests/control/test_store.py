from __future__ import annotations

import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Barrier

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.store import StoreLimits, open_store
from pie_trio.control.store_tables import StoreTables, open_tables
from pie_trio.errors import BadArgumentError, ConfigError, LimitError, StoreError

TIME_LIMIT_SECONDS = 60.0

ROOT = Path(__file__).parents[2]

# Several tasks write as fast as they can and print each key that was acknowledged.
WRITER = """
import sys, trio
from pathlib import Path
from pie_trio.control.store import open_store

async def write(store, task):
    for number in range(10**9):
        key = f"{task}-{number}"
        await store.set("ann", key, key.encode() * 100)
        print(key, flush=True)

async def main():
    async with open_store(Path(sys.argv[1])) as store, trio.open_nursery() as nursery:
        for task in range(8):
            nursery.start_soon(write, store, task)

trio.run(main)
"""


@pytest.fixture(params=["file", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "store.db" if request.param == "file" else None


def modes_in(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def write_until_killed(path: Path) -> set[str]:
    """Return the keys that a process acknowledged before it was killed while it wrote."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert writer.stdout
    with writer.stdout as lines:
        acknowledged = {line for _, line in zip(range(100), lines, strict=False)}
        writer.kill()
        acknowledged.update(lines)
    assert writer.wait() == -signal.SIGKILL
    return {line.strip() for line in acknowledged if line.endswith("\n")}


async def test_values_are_set_found_and_deleted(path: Path | None) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            assert await store.get("ann", "a") is None
            assert not await store.exists("ann", "a")
            await store.set("ann", "a", b"1")
            await store.set("ann", "a", b"\0two")
            await store.set("ann", "b", b"")
            assert await store.get("ann", "a") == b"\0two"
            assert await store.get("ann", "b") == b""
            assert await store.exists("ann", "b")
            assert await store.delete("ann", "a")
            assert not await store.delete("ann", "a")
            assert await store.list_keys("ann") == ["b"]


async def test_owners_do_not_see_each_others_keys(path: Path | None) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            await store.set("ann", "a", b"ann's")
            await store.set("bob", "a", b"bob's")
            await store.delete("bob", "a")
            assert await store.get("ann", "a") == b"ann's"
            assert await store.list_keys("bob") == []


async def test_keys_are_listed_by_prefix_page_by_page(path: Path | None) -> None:
    keys = ["a", "a/1", "a/2", "a/3", "a0", "\N{EURO SIGN}/x"]
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            for key in reversed(keys):
                await store.set("ann", key, b"")
            assert await store.list_keys("ann") == keys
            assert await store.list_keys("ann", prefix="a/") == keys[1:4]
            assert await store.list_keys("ann", prefix="\N{EURO SIGN}") == keys[5:]
            page = await store.list_keys("ann", prefix="a/", limit=2)
            assert page == keys[1:3]
            rest = await store.list_keys("ann", prefix="a/", after=page[-1])
            assert rest == keys[3:4]
            with pytest.raises(BadArgumentError, match="limit is 0"):
                await store.list_keys("ann", limit=0)


async def test_a_file_keeps_what_was_set_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            await store.set("ann", "a", b"1")
            assert modes_in(tmp_path) == {0o600}, "and that of the log beside it"
        path.chmod(0o644)
        async with open_store(path) as store:
            assert await store.get("ann", "a") == b"1"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_two_that_have_one_file_open_see_each_other(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as first, open_store(path) as second:
            await first.set("ann", "a", b"1")
            await second.set("ann", "b", b"2")
            assert await first.list_keys("ann") == ["a", "b"]


async def test_limits_are_refused_one_by_one_and_change_nothing(
    path: Path | None,
) -> None:
    limits = StoreLimits(
        max_key_bytes=4, max_value_bytes=8, max_keys=2, max_owner_bytes=14
    )
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path, limits=limits) as store:
            with pytest.raises(BadArgumentError, match="empty"):
                await store.set("ann", "", b"")
            with pytest.raises(BadArgumentError, match="surrogate"):
                await store.get("ann", "\ud800")
            with pytest.raises(LimitError, match="key of 6 bytes"):
                await store.set("ann", "\N{EURO SIGN}" * 2, b"")
            with pytest.raises(LimitError, match="value of 9 bytes"):
                await store.set("ann", "a", b"9" * 9)
            await store.set("ann", "a", b"8" * 8)
            with pytest.raises(LimitError, match="would have 15 bytes"):
                await store.set("ann", "b", b"5" * 5)
            await store.set("ann", "b", b"4" * 4)
            with pytest.raises(LimitError, match="2 keys"):
                await store.set("ann", "c", b"")
            await store.set("ann", "a", b"")
            await store.set("bob", "c", b"8" * 8)
            assert await store.list_keys("ann") == ["a", "b"]


async def test_requests_that_wait_share_a_transaction(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_transactions = 0
    transaction = StoreTables.transaction

    def counted(self: StoreTables, *, is_write: bool) -> object:
        nonlocal num_transactions
        num_transactions += 1
        return transaction(self, is_write=is_write)

    monkeypatch.setattr(StoreTables, "transaction", counted)
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            async with trio.open_nursery() as nursery:
                for number in range(100):
                    nursery.start_soon(store.set, "ann", str(number), b"")
            assert len(await store.list_keys("ann")) == 100
    assert num_transactions <= 5


async def test_a_request_that_fails_does_not_take_others_with_it(
    path: Path | None,
) -> None:
    limits = StoreLimits(max_file_bytes=64 << 10)
    outcomes = dict[int, bool]()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path, limits=limits) as store:
            await store.set("ann", "first", b"1")

            async def set_large(number: int) -> None:
                try:
                    await store.set("ann", str(number), bytes(8 << 10))
                    outcomes[number] = True
                except StoreError as error:
                    assert "it is full: free space" in str(error)
                    outcomes[number] = False

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(set_large, number)
                nursery.start_soon(store.get, "ann", "first")
            stored = {
                int(key) for key in await store.list_keys("ann") if key != "first"
            }
            assert stored == {number for number, is_set in outcomes.items() if is_set}
            assert 0 < len(stored) < 20
            assert await store.get("ann", "first") == b"1"
            for number in stored:
                assert await store.delete("ann", str(number))
            await store.set("ann", "again", bytes(8 << 10))


async def test_cancelled_requests_leave_the_store_usable(path: Path | None) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            for num_checkpoints in range(4):
                async with trio.open_nursery() as nursery:
                    for number in range(5):
                        nursery.start_soon(store.set, "ann", str(number), b"1")
                    for _ in range(num_checkpoints):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            await store.set("ann", "0", b"2")
            assert await store.get("ann", "0") == b"2"


async def test_a_store_that_was_closed_says_so(path: Path | None) -> None:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            pass
        with pytest.raises(StoreError, match="closed"):
            await store.get("ann", "a")


async def test_who_waits_while_the_store_closes_is_told(path: Path | None) -> None:
    errors = list[str]()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with trio.open_nursery() as nursery:
            async with open_store(path) as store:

                async def set_many() -> None:
                    try:
                        for number in range(1 << 30):
                            await store.set("ann", str(number), b"")
                    except StoreError as error:
                        errors.append(str(error))

                for _ in range(3):
                    nursery.start_soon(set_many)
                await store.set("bob", "a", b"")
    assert errors == ["the store is closed: the server stops"] * 3


async def test_what_was_acknowledged_survives_a_kill_in_the_middle(
    tmp_path: Path,
) -> None:
    path, acknowledged = tmp_path / "store.db", set[str]()
    for _ in range(3):
        acknowledged |= write_until_killed(path)
    assert len(acknowledged) >= 100
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path) as store:
            for key in acknowledged:
                assert await store.get("ann", key) == key.encode() * 100
    tables = open_tables(path, StoreLimits())
    with closing(tables), closing(sqlite3.connect(path)) as connection:
        query = "SELECT count(*), sum(length(key) + length(value)) FROM entries"
        assert tables.usage("ann") == connection.execute(query).fetchone()


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    path, barrier = tmp_path / "store.db", Barrier(8)

    def set_one(number: int) -> None:
        barrier.wait(TIME_LIMIT_SECONDS)
        with closing(open_tables(path, StoreLimits())) as tables:
            with tables.transaction(is_write=True):
                tables.set("ann", str(number), b"")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(set_one, range(8)))
    with closing(open_tables(path, StoreLimits())) as tables:
        assert tables.usage("ann") == (8, 8)


def make_other_database(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")


def make_newer_store(path: Path) -> None:
    open_tables(path, StoreLimits()).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")


def make_damaged_store(path: Path) -> None:
    open_tables(path, StoreLimits()).close()
    data = bytearray(path.read_bytes())
    data[100:] = b"\xa5" * (len(data) - 100)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (lambda path: path.write_bytes(b"no database" * 100), "move it away"),
        (make_damaged_store, "move it away"),
        (make_other_database, "another application"),
        (make_newer_store, "newer Pie"),
        (lambda path: path.mkdir(), "name a file"),
    ],
    ids=["text", "damaged", "other", "newer", "folder"],
)
async def test_a_file_that_is_no_store_is_refused(
    tmp_path: Path,
    prepare: object,
    match: str,
) -> None:
    path = tmp_path / "store.db"
    assert callable(prepare)
    prepare(path)
    with trio.fail_after(TIME_LIMIT_SECONDS), pytest.raises(ConfigError, match=match):
        async with open_store(path):
            pytest.fail("it opened")


def test_a_folder_that_is_given_by_mistake_keeps_its_mode(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mode
    with pytest.raises(ConfigError):
        open_tables(tmp_path, StoreLimits())
    assert tmp_path.stat().st_mode == before


async def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        trio.fail_after(TIME_LIMIT_SECONDS),
        pytest.raises(ConfigError, match="nowhere"),
    ):
        async with open_store(tmp_path / "nowhere" / "store.db"):
            pytest.fail("it opened")


async def test_a_lock_of_another_process_fails_writes_and_not_reads(
    tmp_path: Path,
) -> None:
    path, outcomes = tmp_path / "store.db", list[object]()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_store(path, locked_seconds=0.01) as store:
            await store.set("ann", "a", b"1")

            async def read() -> None:
                outcomes.append(await store.get("ann", "a"))

            async def write() -> None:
                with pytest.raises(StoreError, match="another process"):
                    await store.set("ann", "a", b"2")
                outcomes.append("locked")

            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                async with trio.open_nursery() as nursery:
                    for work in (read, write, read, write):
                        nursery.start_soon(work)
            assert sorted(map(str, outcomes)) == ["b'1'"] * 2 + ["locked"] * 2
            await store.set("ann", "a", b"3")


async def test_a_store_that_is_locked_when_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    open_tables(path, StoreLimits()).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ConfigError, match="another process"):
            async with open_store(path, locked_seconds=0.01):
                pytest.fail("it opened")


STEPS = st.tuples(
    st.sampled_from(["set", "delete", "list"]),
    st.sampled_from(["ann", "bob"]),
    st.text(st.sampled_from("ab\0\N{EURO SIGN}\U0010ffff"), min_size=1, max_size=3),
    st.binary(max_size=6),
)


@given(st.lists(STEPS, max_size=30))
def test_a_store_is_a_dictionary_for_each_owner_with_limits(
    steps: list[tuple[str, str, str, bytes]],
) -> None:
    limits = StoreLimits(max_keys=4, max_owner_bytes=40)
    model: dict[str, dict[str, bytes]] = {"ann": {}, "bob": {}}
    with closing(open_tables(None, limits)) as tables:
        for step, owner, key, value in steps:
            owned = model[owner]
            if step == "set":
                new = {**owned, key: value}
                try:
                    tables.set(owner, key, value)
                except LimitError:
                    assert len(new) > 4 or size(new) > 40
                else:
                    assert len(new) <= 4
                    model[owner] = owned = new
            elif step == "delete":
                assert tables.delete(owner, key) == (owned.pop(key, None) is not None)
            found = tables.list_keys(owner, prefix=key[:1], after="", limit=100)
            assert found == sorted(k for k in owned if k.startswith(key[:1]))
            assert tables.get(owner, key) == owned.get(key)
            assert tables.usage(owner) == (len(owned), size(owned))


def size(values: dict[str, bytes]) -> int:
    return sum(len(key.encode()) + len(value) for key, value in values.items())
