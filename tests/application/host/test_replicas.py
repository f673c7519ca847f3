"""Inferlets on two replicas of one model: where they run, and pages that cross."""

from __future__ import annotations

import threading
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.services import Grants
from pie_trio.config import InstanceLimits
from pie_trio.control import export_limits, page_transfer
from pie_trio.errors import (
    AdapterError,
    BadArgumentError,
    CancelledError,
    EngineError,
    LimitError,
    NotFoundError,
)
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.host.clients import Client, open_rig
from tests.application.host.test_exports import (
    EXPECTED,
    PAGES,
    PROMPT,
    export,
    go_on,
    write,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.control.served_model import ServedModel
    from tests.application.host.clients import Rig

TWO = ("fake", "fake")
COPIED = [50, 51, 52]


def replicas(rig: Rig) -> tuple[ServedModel, ...]:
    """Return the replicas of the only model."""
    (model,) = rig.models.values()
    return model.replicas.members


def replica_of(client: Client) -> int:
    """Return the number of the replica that an inferlet runs on."""
    return client.session.models["fake"].number


@asynccontextmanager
async def client_on(
    rig: Rig,
    number: int,
    owner: str = "ann",
    grants: Grants | None = None,
    name: object = "",
) -> AsyncGenerator[Client]:
    """Run an instance on a replica, by making the others look full."""
    others = [one for one in replicas(rig) if one.number != number]
    for other in others:
        other.num_inferlets += 1000
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            rig.open_client(f"{owner}-{number}{name}", owner=owner, grants=grants)
        )
        for other in others:
            other.num_inferlets -= 1000
        assert replica_of(client) == number
        yield client


async def bring(client: Client, name: str, pages: Sequence[int] = COPIED) -> None:
    """Import under fresh numbers."""
    await client.resolve(client.session.import_kvpage(0, name, list(pages)))


async def go_on_there(client: Client, name: str = "story") -> list[int]:
    """As :func:`go_on`, where the import may have to wait."""
    await bring(client, name)
    token = await client.run([65], pages=COPIED, start=len(PROMPT))
    client.session.dealloc_kvpage(0, COPIED)
    return [token]


class CountingEngine(FakeEngine):
    """Counts what is read from it."""

    num_read = num_reads = 0

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        self.num_read += len(page_ids)
        self.num_reads += 1
        return super().read_pages(page_ids)


@pytest.fixture
def count_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the engines of a rig count the pages that are read from them."""
    monkeypatch.setattr("tests.application.host.clients.FakeEngine", CountingEngine)


def num_read(rig: Rig) -> list[int]:
    """Return the pages that were read from each engine."""
    return [one.num_read for one in rig.engines if isinstance(one, CountingEngine)]


# ---- where inferlets run --------------------------------------------------------------


async def test_inferlets_are_spread_and_there_is_one_model() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        assert list(rig.models) == ["fake"]
        clients = [
            await stack.enter_async_context(rig.open_client(f"i-{n}")) for n in range(4)
        ]
        assert [replica_of(client) for client in clients] == [0, 1, 0, 1]
        assert clients[0].session.available_models() == ["fake"]
        for client in clients:
            client.session.alloc_kvpage(0, PAGES)
            assert [await client.run(PROMPT, pages=PAGES)] == fake_continuation(
                PROMPT, 1
            )
        assert [len(engine.batches) for engine in rig.engines] == [2, 2]


async def test_an_inferlet_goes_where_more_is_free() -> None:
    async with open_rig(names=TWO, num_pages=8) as rig, AsyncExitStack() as stack:
        first = await stack.enter_async_context(client_on(rig, 0))
        second = await stack.enter_async_context(client_on(rig, 1))
        await write(second)
        third = await stack.enter_async_context(rig.open_client("third"))
        assert (replica_of(first), replica_of(third)) == (0, 0), "8 : 2 against 5 : 2"
        await write(first)
        await write(third)
        fourth = await stack.enter_async_context(rig.open_client("fourth"))
        assert replica_of(fourth) == 1


async def test_exports_that_nobody_uses_do_not_fill_a_replica() -> None:
    async with open_rig(names=TWO, num_pages=8) as rig:
        async with client_on(rig, 0) as client:
            await write(client)
            export(client)
        assert [one.pool.num_free for one in replicas(rig)] == [5, 8]
        async with rig.open_client("next") as client:
            assert replica_of(client) == 0


async def test_who_uses_no_model_counts_nowhere() -> None:
    async with open_rig(names=TWO) as rig:
        session = rig.make_session("idle")
        assert [one.num_inferlets for one in replicas(rig)] == [0, 0]
        assert session.get_model("")[0] == "fake"
        assert [one.num_inferlets for one in replicas(rig)] == [1, 0]
        await session.close()
        assert [one.num_inferlets for one in replicas(rig)] == [0, 0]
        late = rig.make_session("late")
        await late.close()
        assert late.model("") is session.model("")
        assert [one.num_inferlets for one in replicas(rig)] == [0, 0], "they have ended"


async def test_a_child_is_on_the_replica_of_its_parent() -> None:
    async with open_rig(names=TWO) as rig, client_on(rig, 1) as parent:
        tree = parent.session.tree
        async with (
            rig.open_client("child", tree=tree) as child,
            rig.open_client("grandchild", tree=tree) as grandchild,
            rig.open_client("stranger") as stranger,
        ):
            assert [replica_of(c) for c in (child, grandchild)] == [1, 1]
            assert replica_of(stranger) == 0
            assert [one.num_inferlets for one in replicas(rig)] == [1, 3]


async def test_a_child_that_asks_first_takes_its_parent_along() -> None:
    async with open_rig(names=TWO) as rig, client_on(rig, 0):
        parent = rig.make_session("parent")
        async with rig.open_client("child", tree=parent.tree) as child:
            assert replica_of(child) == 1
            assert parent.models["fake"].number == 1
        await parent.close()


# ---- limits ---------------------------------------------------------------------------


async def test_quotas_of_a_user_count_over_all_replicas() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        rig.services.quotas.users["ann"].limits["pages"] = 5
        one.session.alloc_kvpage(0, [0, 1, 2])
        with pytest.raises(LimitError, match=r"6 pages would .* the user ann"):
            other.session.alloc_kvpage(0, [0, 1, 2])
        other.session.alloc_kvpage(0, [0, 1])


async def test_exports_of_an_owner_count_over_all_replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export_limits, "MAX_EXPORTS_OF_OWNER", 2)
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        await write(other)
        export(one, "a")
        export(one, "b")
        with pytest.raises(LimitError, match="ann has 2 exports"):
            export(other, "c")
        one.session.dealloc_kvpage(0, PAGES)
        export(other, "c")
        names = [info[0] for info in one.session.list_exports(0, "")]
        assert names == ["b", "c"], "what nobody uses had to go, wherever it was"


async def test_an_import_counts_for_the_importer_once_its_pages_are_there() -> None:
    limits = InstanceLimits(max_pages=3)
    async with open_rig(names=TWO, limits=limits) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        export(one)
        other.session.alloc_kvpage(0, [7])
        with pytest.raises(LimitError):
            other.session.import_kvpage(0, "story", COPIED)
        other.session.dealloc_kvpage(0, [7])
        answer = other.session.import_kvpage(0, "story", COPIED)
        rig.services.quotas.users["ann"].limits["pages"] = 4
        with pytest.raises(LimitError):
            await other.resolve(answer)
        assert other.session.pages["fake"].values() == []


# ---- imports --------------------------------------------------------------------------


@pytest.mark.usefixtures("count_reads")
async def test_an_import_from_another_replica_copies_once() -> None:
    async with open_rig(names=TWO) as rig:
        async with client_on(rig, 0) as client:
            await write(client)
            export(client, metadata=b"tokens")
        async with client_on(rig, 1) as client, client_on(rig, 1, "ann") as another:
            assert await go_on_there(client) == EXPECTED
            assert num_read(rig) == [3, 0]
            assert await go_on(another) == EXPECTED, "it finds the copy, and waits not"
            assert await go_on_there(client) == EXPECTED, "nobody wrote into the copy"
            info = client.session.get_export(0, "story")
            assert (info[0], bytes(info[4]), info[-1]) == ("story", b"tokens", 3)
        async with client_on(rig, 0) as client:
            assert await go_on(client) == EXPECTED
        assert num_read(rig) == [3, 0]
        assert replicas(rig)[1].shared_exports.num_copied == 1


@pytest.mark.usefixtures("count_reads")
async def test_a_long_export_is_read_in_parts_with_steps_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_transfer, "READ_BYTES", 1)
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        export(one)
        assert await go_on_there(other) == EXPECTED
        (engine, _) = rig.engines
        assert isinstance(engine, CountingEngine)
        assert (engine.num_read, engine.num_reads) == (3, 3)


@pytest.mark.usefixtures("count_reads")
async def test_two_that_import_at_once_share_one_copy() -> None:
    async with open_rig(names=TWO) as rig:
        async with client_on(rig, 0) as client:
            await write(client)
            export(client)
        async with client_on(rig, 1) as one, client_on(rig, 1) as other:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bring, one, "story")
                nursery.start_soon(bring, other, "story")
            for client in (one, other):
                token = await client.run([65], pages=COPIED, start=len(PROMPT))
                assert [token] == EXPECTED
        assert num_read(rig) == [3, 0]


@pytest.mark.usefixtures("count_reads")
async def test_who_finds_a_copy_when_it_begins_to_wait_takes_that() -> None:
    async with open_rig(names=TWO) as rig:
        async with client_on(rig, 0) as client:
            await write(client)
            export(client)
        async with client_on(rig, 1) as one, client_on(rig, 1) as other:
            answers = [
                client.session.import_kvpage(0, "story", COPIED)
                for client in (one, other)
            ]
            for client, answer in zip((one, other), answers, strict=True):
                await client.resolve(answer)
        assert num_read(rig) == [3, 0]
        assert replicas(rig)[1].pool.num_virtual == len(COPIED)


async def test_masks_cross_as_well() -> None:
    async with open_rig(names=TWO) as rig:
        async with client_on(rig, 0) as client:
            await write(client)
            client.session.mask_kvpage(0, 0, [True, False, False, False])
            export(client)
            alone = await go_on(client)
        async with client_on(rig, 1) as client:
            assert await go_on_there(client) == alone != EXPECTED


async def test_pages_that_nobody_has_written_cross_as_well() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        one.session.alloc_kvpage(0, [3])
        export(one, pages=[*PAGES, 3])
        pages, more = [50, 51, 52, 53], [65, 66, 67, 68]
        await bring(other, "story", pages)
        token = await other.run(more, pages=pages, start=len(PROMPT))
        assert [token] == fake_continuation([*PROMPT, *more], 1)


async def test_slots_that_were_never_written_are_not_seen_elsewhere_either() -> None:
    async with open_rig(names=TWO, gated=True) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        one.session.alloc_kvpage(0, [*PAGES, 9])
        first = one.forward([65], pages=[9])
        await rig.gate.wait_started(1)
        ticket = one.forward(PROMPT, pages=PAGES)
        export(one)
        one.session.cancel(ticket)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring, other, "story")
            rig.gate.open()
        await one.take(first)
        with pytest.raises(CancelledError, match="would see tokens"):
            await other.run([65], pages=COPIED, start=len(PROMPT))


async def test_an_import_waits_for_forwards_that_have_not_run() -> None:
    async with open_rig(names=TWO, gated=True) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        one.session.alloc_kvpage(0, [*PAGES, 9])
        one.forward([65], pages=[9])
        await rig.gate.wait_started(1)
        ticket = one.forward(PROMPT, pages=PAGES)  # in the next step
        export(one)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bring, other, "story")
            await trio.testing.wait_all_tasks_blocked()
            assert other.session.pages["fake"].values() == []
            rig.gate.open()
        await one.take(ticket)
        token = await other.run([65], pages=COPIED, start=len(PROMPT))
        assert [token] == EXPECTED


async def test_pages_in_host_memory_cross_as_well() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        await one.resolve(one.session.finish(one.session.suspend_pages()))
        assert len(replicas(rig)[0].pool.swapped) == 3
        export(one)
        assert await go_on_there(other) == EXPECTED
        assert len(replicas(rig)[0].pool.swapped) == 3, "they stay where they are"


async def test_a_name_is_one_export_over_all_replicas() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        export(one, metadata=b"one")
        await bring(other, "story")
        other.session.dealloc_kvpage(0, COPIED)
        await write(other)
        export(other, metadata=b"other")
        for client in (one, other):
            (info,) = client.session.list_exports(0, "")
            assert bytes(info[4]) == b"other"
        assert [len(model.exports) for model in replicas(rig)] == [0, 1]
        assert replicas(rig)[1].shared_exports.num_copies == 0
        one.session.unexport_kvpage(0, "story")
        for client in (one, other):
            with pytest.raises(NotFoundError, match="no export 'story'"):
                client.session.import_kvpage(0, "story", COPIED)
            with pytest.raises(NotFoundError, match="ann has no export 'story'"):
                client.session.unexport_kvpage(0, "story")


async def test_ones_own_name_goes_before_another_owners_wherever_they_are() -> None:
    async with open_rig(names=("fake",) * 3) as rig, AsyncExitStack() as stack:
        bob = await stack.enter_async_context(
            client_on(rig, 1, "bob", Grants(publish=True))
        )
        here, beside, there = [
            await stack.enter_async_context(client_on(rig, number))
            for number in (0, 1, 2)
        ]
        await write(bob)
        await write(there)
        export(bob, "story", permission=("published", None), metadata=b"bob")
        for client in (here, beside, there):
            assert bytes(client.session.get_export(0, "bob/story")[4]) == b"bob"
        export(there, "bob/story", metadata=b"ann")
        for client in (here, beside, there):
            assert bytes(client.session.get_export(0, "bob/story")[4]) == b"ann"
            (info,) = client.session.list_exports(0, "bob")
            assert bytes(info[4]) == b"ann"
            assert await go_on_there(client, "bob/story") == EXPECTED


async def test_what_may_not_be_imported_is_refused_before_anything_is_read() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        ann = await stack.enter_async_context(client_on(rig, 0))
        bob = await stack.enter_async_context(client_on(rig, 1, "bob"))
        there = await stack.enter_async_context(client_on(rig, 1))
        await write(ann)
        export(ann)
        with pytest.raises(NotFoundError):
            bob.session.import_kvpage(0, "ann/story", COPIED)
        with pytest.raises(BadArgumentError, match="has 3 pages, but 2 numbers"):
            await bring(there, "story", [50, 51])
        await bring(there, "story")
        with pytest.raises(BadArgumentError, match="has 3 pages, but 2 numbers"):
            there.session.import_kvpage(0, "story", [60, 61])


async def test_an_export_that_is_taken_back_takes_its_copies_along() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        one = await stack.enter_async_context(client_on(rig, 0))
        other = await stack.enter_async_context(client_on(rig, 1))
        await write(one)
        export(one)
        await bring(other, "story")
        one.session.unexport_kvpage(0, "story")
        token = await other.run([65], pages=COPIED, start=len(PROMPT))
        assert [token] == EXPECTED, "who has imported it keeps it"
        other.session.dealloc_kvpage(0, COPIED)
        assert replicas(rig)[1].pool.num_virtual == 0


class HeldEngine(FakeEngine):
    """Holds whoever reads pages from it until the test says so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.is_reading, self.may_read = trio.Event(), threading.Event()
        self.failure: Exception | None = None
        self._token = trio.lowlevel.current_trio_token()

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        self._token.run_sync_soon(self.is_reading.set)
        assert self.may_read.wait(30), "the test lets it go on"
        if self.failure is not None:
            raise self.failure
        return super().read_pages(page_ids)


@asynccontextmanager
async def reading(
    rig: Rig, importers: Sequence[Client], exporter: Client
) -> AsyncGenerator[tuple[HeldEngine, list[trio.CancelScope]]]:
    """Let inferlets import while the pages are being read, until the block ends."""
    await write(exporter)
    export(exporter)
    (engine, _) = rig.engines
    assert isinstance(engine, HeldEngine)
    scopes = [trio.CancelScope() for _ in importers]

    async def run(client: Client, scope: trio.CancelScope) -> None:
        with scope:
            await bring(client, "story")

    async with trio.open_nursery() as nursery:
        for client, scope in zip(importers, scopes, strict=True):
            nursery.start_soon(run, client, scope)
        await engine.is_reading.wait()
        try:
            yield engine, scopes
        finally:
            engine.may_read.set()


@pytest.fixture
def hold_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the engines of a rig hold whoever reads pages."""
    monkeypatch.setattr("tests.application.host.clients.FakeEngine", HeldEngine)


@pytest.mark.usefixtures("hold_reads")
async def test_an_importer_that_is_cancelled_leaves_nothing_and_holds_nobody_up() -> (
    None
):
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        exporter = await stack.enter_async_context(client_on(rig, 0))
        gone = await stack.enter_async_context(client_on(rig, 1))
        stays = await stack.enter_async_context(client_on(rig, 1))
        async with reading(rig, [gone, stays], exporter) as (_, scopes):
            scopes[0].cancel()
            await trio.testing.wait_all_tasks_blocked()
        assert gone.session.pages["fake"].values() == []
        token = await stays.run([65], pages=COPIED, start=len(PROMPT))
        assert [token] == EXPECTED
        exporter.session.unexport_kvpage(0, "story")
        stays.session.dealloc_kvpage(0, COPIED)
        exporter.session.dealloc_kvpage(0, PAGES)
        assert [one.pool.num_virtual for one in replicas(rig)] == [0, 0]


@pytest.mark.usefixtures("hold_reads")
async def test_an_export_taken_back_while_it_is_copied_reaches_who_asked_before() -> (
    None
):
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        exporter = await stack.enter_async_context(client_on(rig, 0))
        importer = await stack.enter_async_context(client_on(rig, 1))
        async with reading(rig, [importer], exporter):
            exporter.session.unexport_kvpage(0, "story")
            exporter.session.dealloc_kvpage(0, PAGES)
        token = await importer.run([65], pages=COPIED, start=len(PROMPT))
        assert [token] == EXPECTED
        assert replicas(rig)[1].shared_exports.num_copies == 0
        assert replicas(rig)[0].pool.num_virtual == 0


@pytest.mark.usefixtures("hold_reads")
async def test_pages_that_cannot_be_read_are_an_error_and_not_garbage() -> None:
    async with open_rig(names=TWO) as rig, AsyncExitStack() as stack:
        exporter = await stack.enter_async_context(client_on(rig, 0))
        importer = await stack.enter_async_context(client_on(rig, 1))
        with pytest.RaisesGroup(
            pytest.RaisesExc(EngineError, match="could not be read on the replica")
        ):
            async with reading(rig, [importer], exporter) as (held, _):
                held.failure = EngineError("a bus error")
        (engine, _) = rig.engines
        assert isinstance(engine, HeldEngine)
        engine.failure = None
        assert await go_on_there(importer) == EXPECTED


async def test_copies_that_nobody_uses_go_when_pages_are_short() -> None:
    async with open_rig(names=TWO, num_pages=8) as rig:
        async with client_on(rig, 0) as client:
            await write(client)
            export(client)
        async with client_on(rig, 1) as client:
            assert await go_on_there(client) == EXPECTED
            shared = replicas(rig)[1].shared_exports
            assert (shared.num_copies, replicas(rig)[1].pool.num_free) == (1, 5)
            client.session.alloc_kvpage(0, list(range(8)))
            await client.run([65] * 32, pages=range(8))
            assert shared.num_copies == 0
            client.session.dealloc_kvpage(0, list(range(8)))
            assert await go_on_there(client) == EXPECTED


async def test_copies_that_were_never_used_are_bounded() -> None:
    async with open_rig(names=TWO, num_pages=16) as rig:
        async with client_on(rig, 0) as source, client_on(rig, 1) as client:
            for name in ("a", "b", "c", "d"):
                await write(source)
                export(source, name)
                source.session.dealloc_kvpage(0, PAGES)
                await bring(client, name)
                client.session.dealloc_kvpage(0, COPIED)
            shared = replicas(rig)[1].shared_exports
            assert (shared.num_copied, shared.num_copies) == (4, 3)


# ---- adapters -------------------------------------------------------------------------


def save_adapter(folder: Path) -> Path:
    """Write files that the fake takes for an adapter."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


async def test_an_adapter_is_on_all_replicas_or_on_none(tmp_path: Path) -> None:
    folder = save_adapter(tmp_path / "one")
    async with open_rig(names=TWO) as rig:
        (model,) = rig.models.values()
        await model.replicas.load_adapter("one", folder)
        assert [one.info.adapters for one in replicas(rig)] == [("one",)] * 2
        rig.engines[1].load_adapter("two", folder)
        with pytest.raises(AdapterError):
            await model.replicas.load_adapter("two", folder)
        assert "two" not in replicas(rig)[0].info.adapters
        model.replicas.drop_adapter("one")
        assert all("one" not in engine.info.adapters for engine in rig.engines)
        with pytest.raises(AdapterError):
            model.replicas.drop_adapter("one")
