"""What is known of persistent exports, from one server to the next."""

from __future__ import annotations

import stat
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.control.export_recorder import ExportRecorder
from pie_trio.control.export_register import open_export_register
from pie_trio.control.exports import Export, ExportIndex, Permission
from pie_trio.control.pages import PagePool
from pie_trio.errors import ExportLostError, NotFoundError
from tests.control.export_servers import (
    NUM_PAGES,
    TIME_LIMIT_SECONDS,
    Server,
    WallClock,
    copy_as_killed,
    names_in,
    serving,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MANY_SECONDS = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "exports.db"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> WallClock:
    return WallClock(monkeypatch)


async def test_a_server_that_was_killed_knows_its_persistent_exports(
    path: Path,
) -> None:
    async with serving(path) as server:
        made = await server.export(users={"bob"}, metadata=b"tokens")
        await server.export("ends", is_persistent=False)
        await server.export("open", is_published=True)
        killed = copy_as_killed(path)
    async with serving(killed) as server:
        found = server.index.find("bob", "ann/x")
        assert (found.owner, found.metadata, found.pages) == ("ann", b"tokens", [])
        assert (found.made_at, found.num_lost) == (made.made_at, 2)
        assert found.instance == "ann-1"
        with pytest.raises(ExportLostError) as told:
            server.index.take("bob", "ann/x", 2)
        assert told.value.code == "engine-lost"
        day = time.strftime("%Y-%m-%d", time.gmtime(made.made_at))
        for word in ("'x'", "ann", "tiny", day, "2 pages", "export it again"):
            assert word in str(told.value)
        for owner, name in (("cid", "ann/x"), ("ann", "ends"), ("ann", "y")):
            with pytest.raises(NotFoundError):
                server.index.take(owner, name, 2)
        with pytest.raises(ExportLostError, match="'open' that ann made"):
            server.index.take("cid", "ann/open", 2)


async def test_the_file_is_private(path: Path) -> None:
    async with serving(path) as server:
        await server.export()
        parts = list(await trio.Path(path.parent).iterdir())
        assert len(parts) == 3, "with what SQLite has beside it"
        for part in parts:
            assert stat.S_IMODE((await part.stat()).st_mode) == 0o600


async def test_a_lost_engine_looks_as_a_server_that_was_killed(path: Path) -> None:
    async with serving(path) as server:
        await server.export()
        server.lose_engine()
        with pytest.raises(ExportLostError) as lost:
            server.index.take("ann", "x", 2)
    async with serving(path) as server:
        with pytest.raises(ExportLostError) as killed:
            server.index.take("ann", "x", 2)
    told, again = (
        str(error.value).replace(error.value.reason, "REASON")
        for error in (lost, killed)
    )
    assert told == again
    assert lost.value.reason != killed.value.reason


async def test_who_exports_again_replaces_what_is_empty_and_who_may_import_it(
    path: Path,
) -> None:
    async with serving(path) as server:
        await server.export(users={"bob"})
    for users, others in (({"cid"}, "bob"), ({"bob"}, "cid")):
        async with serving(path) as server:
            await server.export(users=users)
            (user,) = users
            assert server.index.take(user, "ann/x", 2).loss == ""
            for page in server.index.find("ann", "x").pages:
                server.pool.release(page)  # what was imported
            with pytest.raises(NotFoundError):
                server.index.take(others, "ann/x", 2)
            await server.export(owner="bob")
            assert server.index.find_own("bob", "x").permission == Permission()
            assert server.index.find_own("ann", "x").permission.users == users
    assert sorted(names_in(path)) == ["x", "x"]


@pytest.mark.parametrize(
    ("seconds_down", "is_there"), [(0.0, True), (1800.0, True), (7200.0, False)]
)
async def test_times_to_live_go_on_while_no_server_runs(
    path: Path, clock: WallClock, seconds_down: float, is_there: bool
) -> None:
    async with serving(path) as server:
        await server.export(seconds_to_live=MANY_SECONDS)
        await server.export("stays")
    clock.offset += seconds_down
    async with serving(path) as server:
        assert len(server.index) == 1 + is_there
        assert server.index.find("ann", "stays").expires_at is None
        if is_there:
            expires_at = server.index.find("ann", "x").expires_at
            assert expires_at is not None
            left = expires_at - trio.current_time()
            assert 0 <= MANY_SECONDS - seconds_down - left < TIME_LIMIT_SECONDS
        else:
            with pytest.raises(NotFoundError):
                server.index.find("ann", "x")
    assert ("x" in names_in(path)) is is_there


async def test_a_clock_that_was_set_back_makes_no_time_to_live_longer(
    path: Path, clock: WallClock
) -> None:
    async with serving(path) as server:
        await server.export(seconds_to_live=MANY_SECONDS)
    clock.offset -= 1e6
    async with serving(path) as server:
        expires_at = server.index.find("ann", "x").expires_at
        assert expires_at is not None
        assert expires_at <= trio.current_time() + MANY_SECONDS + 1e-3


async def test_what_was_taken_back_dropped_or_replaced_is_not_known_later(
    path: Path,
) -> None:
    async with serving(path) as server:
        await server.export("back")
        await server.recorder.remove(server.index.find_own("ann", "back"))
        await server.export("short")
        server.index.reclaim(NUM_PAGES)
        await server.export("replaced")
        await server.export("replaced", is_persistent=False)
        await server.export("over", seconds_to_live=1e-9)
        server.index.expire()
        await server.export("kept")
        server.lose_engine()
        await server.written()
        assert names_in(path) == ["kept"], "while the server runs"
    async with serving(path) as server:
        assert [e.name for e in server.index.list_for("ann", "")] == ["kept"]
        await server.recorder.remove(server.index.find_own("ann", "kept"))
    assert names_in(path) == []


async def test_what_an_index_has_dropped_last_is_out_of_the_file_when_it_closes(
    path: Path,
) -> None:
    async with serving(path) as server:
        await server.export()
        server.index.drop(server.index.find_own("ann", "x"))
    assert names_in(path) == []


async def test_caches_and_what_ends_with_its_exporter_are_not_recorded(
    path: Path,
) -> None:
    async with serving(path) as server:
        for name, is_persistent in (("prefix/ab", True), ("x", False)):
            export = server.new_export(name, is_persistent=is_persistent)
            assert not server.recorder.records(export)
            server.index.add(export)
            for page in export.pages:
                server.pool.release(page)
        server.lose_engine()
        with pytest.raises(NotFoundError):
            server.index.take("ann", "prefix/ab", 2)
    assert names_in(path) == []


async def test_without_a_register_nothing_is_recorded() -> None:
    pool = PagePool(num_pages=1, page_size=2)
    index = ExportIndex(pool, trio.current_time)
    recorder = ExportRecorder("tiny", index, None, trio.current_time)
    await recorder.restore()
    export = Export("a", "x", [0], [None], Permission(), True, None, b"", "i", 0.0)
    assert not recorder.records(export)


async def test_of_several_replicas_one_restores(path: Path) -> None:
    async with serving(path) as server:
        await server.export()
    async with serving(path) as server:
        assert await server.register.take_rows("tiny") == []
        assert await server.register.take_rows("another") == []


async def test_exports_of_a_model_that_is_not_served_wait_for_it(path: Path) -> None:
    async with serving(path) as server:
        await server.export()
    async with open_export_register(path) as register:
        index = ExportIndex(PagePool(num_pages=1, page_size=2), trio.current_time)
        recorder = ExportRecorder("another", index, register, trio.current_time)
        await recorder.restore()
        assert len(index) == 0
    async with serving(path) as server:
        assert server.index.find("ann", "x").num_lost == 2


NAME = st.sampled_from(["x", "y"])
OWNER = st.sampled_from(["ann", "bob"])
Step = tuple[str, str, str, bool | None]
STEP = st.one_of(
    st.tuples(st.just("export"), OWNER, NAME, st.booleans()),
    st.tuples(st.just("remove"), OWNER, NAME, st.none()),
    st.tuples(st.just("reclaim"), OWNER, NAME, st.none()),
    st.tuples(st.just("lose"), OWNER, NAME, st.none()),
    st.tuples(st.just("stop"), OWNER, NAME, st.none()),
    st.tuples(st.just("kill"), OWNER, NAME, st.none()),
)


class Exporting:
    """What several servers do, one after the other, and what the next one should know."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = dict[tuple[str, str], bytes]()
        self._number = 0

    async def run(self, steps: list[Step]) -> None:
        """Let a server take steps until it ends; return once all are done."""
        rest = iter(steps)
        is_over = False
        while not is_over:
            async with serving(self.path) as server:
                assert seen_by_owners(server) == self.kept
                assert server.index.pages == []
                is_over = await self._serve(server, rest)
        async with serving(self.path) as server:
            assert seen_by_owners(server) == self.kept

    async def _serve(self, server: Server, rest: Iterator[Step]) -> bool:
        for kind, owner, name, is_persistent in rest:
            if kind == "export":
                await self._export(server, owner, name, is_persistent=is_persistent)
            elif kind == "remove" and (owner, name) in self.kept:
                del self.kept[owner, name]
                await server.recorder.remove(server.index.find_own(owner, name))
            elif kind == "lose":
                server.lose_engine()
            elif kind == "reclaim":
                server.index.reclaim(NUM_PAGES)
                left = seen_by_owners(server).keys()
                self.kept = {key: self.kept[key] for key in self.kept.keys() & left}
            elif kind == "kill":
                await server.written()
                self.path = copy_as_killed(self.path)
            if kind in ("stop", "kill"):
                server.index.end_instance("ann-1")
                return False
        server.index.end_instance("ann-1")
        return True

    async def _export(
        self, server: Server, owner: str, name: str, *, is_persistent: bool | None
    ) -> None:
        self._number += 1
        data = str(self._number).encode()
        self.kept.pop((owner, name), None)
        if is_persistent:
            self.kept[owner, name] = data
        await server.export(
            name,
            owner=owner,
            is_persistent=bool(is_persistent),
            metadata=data,
            num_pages=1,
        )


def seen_by_owners(server: Server) -> dict[tuple[str, str], bytes]:
    return {
        (export.owner, export.name): export.metadata
        for owner in ("ann", "bob")
        for export in server.index.list_for(owner, "")
    }


@settings(max_examples=max(settings().max_examples // 4, 10))
@given(steps=st.lists(STEP, max_size=12))
def test_whatever_happens_the_next_server_knows_what_was_recorded(
    steps: list[Step],
) -> None:
    with TemporaryDirectory() as folder:
        trio.run(Exporting(Path(folder) / "exports.db").run, steps)
