"""What goes on in a server: samples, and the stream and documents that show them."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from pie_trio.application.server.owners import Owner
from pie_trio.application.server.stats import INTERVAL_SECONDS, Sampler
from pie_trio.application.server.stats_points import make_points
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.control.trace import CommandRecord, StepRecord
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.application.server.clients import EventStream
    from tests.application.server.conftest import OpenServer

GENERATE = """
context = Context()
await context.fill('hello, hello, hello')
text = await context.generate(max_tokens=4).text()
await receive()
"""


@asynccontextmanager
async def sampling() -> AsyncGenerator[Sampler]:
    loaded = LoadedEngine(FakeEngine(), FakeTokenizer())
    async with open_models([loaded], ControlConfig(), InstanceLimits()) as models:
        yield Sampler(models)


async def until_row(stream: EventStream, **wanted: object) -> dict[str, Any]:
    """Return the first row of an instance that has all of this."""
    with trio.fail_after(30):
        while True:
            _, data = await stream.next()
            for row in data["instances"]:
                if all(row[key] == value for key, value in wanted.items()):
                    return row  # type: ignore[no-any-return]


async def test_all_who_watch_share_the_samples(autojump_clock: MockClock) -> None:
    seen = list[list[int]]()

    async def watch() -> None:
        numbers = [0]
        for _ in range(5):
            numbers.append((await sampler.next(numbers[-1])).number)
        seen.append(numbers)

    async with sampling() as sampler, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(watch)
    assert seen == [[0, 1, 2, 3, 4, 5]] * 20
    assert sampler.num_taken == 5


async def test_nothing_is_sampled_while_nobody_watches(
    autojump_clock: MockClock,
) -> None:
    async with sampling() as sampler:
        await sampler.next()
        await trio.sleep(100)
        assert sampler.num_taken == 1
        fresh = await sampler.next()
        assert fresh.number == 2
        assert fresh.previous is None, "what changed meanwhile is not known"


async def test_samples_are_an_interval_apart(autojump_clock: MockClock) -> None:
    async with sampling() as sampler:
        first = await sampler.next()
        begin = trio.current_time()
        second = await sampler.next(first.number)
        assert trio.current_time() - begin == INTERVAL_SECONDS
        assert second.previous is first
        third = await sampler.next(second.number)
        assert third.previous is second
        assert second.previous is None, "old samples can go"


async def test_samples_that_cost_much_become_rarer(autojump_clock: MockClock) -> None:
    async with sampling() as sampler:
        first = await sampler.next()
        sampler.charge(0.05)  # of a view, say
        begin = trio.current_time()
        second = await sampler.next(first.number)
        assert 2.5 <= trio.current_time() - begin < 3.5, "2 % of the time at most"
        assert second.previous is first, "somebody watched all the time"
        sampler.charge(1000)
        begin = trio.current_time()
        await sampler.next(second.number)
        assert trio.current_time() - begin == 10


def test_points_count_what_ended_between_two_edges() -> None:
    def step(ended: float, size: int) -> StepRecord:
        return StepRecord(
            *(1, "FORWARD", size, 10 * size, 0.0, 0.0, ended, 1, ()),
            *(0, 0, 0, 0, 0, "rendezvous"),
        )

    def command(submitted: float, batched: float, finished: float) -> CommandRecord:
        return CommandRecord(
            *("a", 1, 1, "FORWARD", 1, submitted, batched, batched, finished, 1, 1),
            "ok",
        )

    steps = [step(1.0, 1), step(1.5, 2), step(2.0, 4), step(2.1, 8)]
    commands = [command(1.0, 1.1, 1.5), command(1.0, 1.3, 1.6), command(1.0, 0, 2.0)]
    first, second, third = make_points(steps, commands, [0.0, 1.0, 2.0, 3.0], 100.0)
    assert (first.at, first.seconds) == (101.0, 1.0)
    assert [p.batches for p in (first, second, third)] == [1, 2, 1]
    assert [p.commands for p in (first, second, third)] == [1, 6, 8]
    assert [p.tokens for p in (first, second, third)] == [10, 60, 80]
    assert abs(second.wait_p50 - 0.2) < 1e-9, "what never was in a batch has no wait"
    assert 0.28 < second.wait_p95 <= 0.3
    assert first.wait_p95 == third.wait_p95 == 0


async def test_a_stream_follows_an_instance_to_its_end(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("one", GENERATE)
        async with served.api.stream("GET", "/v1/stats/stream") as stream:
            kind, first = await stream.next()
            assert (kind, first["instances"], first["running"]) == ("snapshot", [], 0)
            (model,) = first["models"]
            assert (model["name"], model["pages"]) == ("fake", model["pages_free"])
            assert model["map"]["runs"] == [model["pages"], 0]
            async with served.api.launch("one") as events:
                name = (await events.until("started"))["id"]
                await events.until("receiving")
                row = await until_row(stream, id=name, queue=0)
                assert row["program"] == "one"
                assert row["pages"] >= 1
                assert row["tokens_sampled"] >= 4
                assert row["code"] >= 4
                await served.api.ask("POST", f"/v1/instances/{name}/cancel")
                ended = await until_row(stream, id=name, state="cancelled")
        assert (ended["pages"], ended["queue"], ended["code"]) == (0, 0, 0)
        assert ended["seconds"] > 0


async def test_changes_lead_from_one_snapshot_to_the_next(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("one", GENERATE)
        async with served.api.stream("GET", "/v1/stats/stream") as stream:
            _, first = await stream.next()
            before = first["models"][0]["map"]
            cells = [before["runs"][1]] * before["runs"][0]
            num_batches = len(first["models"][0]["batches"])
            async with served.api.launch("one") as events:
                await events.until("receiving")
                while True:
                    kind, data = await stream.next()
                    assert kind == "changes"
                    changes = data["models"][0]["map"]["changes"]
                    for begin, count, code in zip(
                        *(changes[i::3] for i in range(3)), strict=True
                    ):
                        cells[begin : begin + count] = [code] * count
                    num_batches += len(data["models"][0]["batches"])
                    if data["instances"] == [] and any(cells):
                        break
                answer = (await served.api.get("/v1/stats")).json
        (model,) = answer["models"]
        (row,) = answer["instances"]
        runs = model["map"]["runs"]
        pairs = zip(runs[::2], runs[1::2], strict=True)
        assert cells == [code for count, code in pairs for _ in range(count)]
        assert cells.count(row["code"]) == row["pages"] > 0
        assert len(model["batches"]) == num_batches > 0
        assert sum(point[2] for point in model["points"]) == num_batches


async def test_an_owner_sees_nothing_of_other_owners(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("one", GENERATE)
        program = (await served.programs.find("one", owner=served.owner)).source
        other = await served.registry.launch(
            program, {}, owner=Owner("somebody-else"), is_detached=True
        )
        with other.attach() as reader:
            async for batch in reader:
                if any(event.kind == "receiving" for event in batch.events):
                    break
        answer = await served.api.get("/v1/stats", pie_user="ann")
        assert answer.json["instances"] == []
        assert other.instance_id not in answer.body.decode()
        runs = answer.json["models"][0]["map"]["runs"]
        assert set(runs[1::2]) == {0, 3}
        path = f"/v1/instances/{other.instance_id}/timeline"
        assert (await served.api.get(path, pie_user="ann")).status == 404
        everything = (await served.api.get("/v1/stats")).json
        assert [one["owner"] for one in everything["instances"]] == ["somebody-else"], (
            "whoever runs the server sees all"
        )
        other.cancel()
        await other.wait_ended()


async def test_a_timeline_has_the_commands_with_their_batches(
    open_server: OpenServer,
) -> None:
    body = "with span('thinking'):\n" + "\n".join(
        f"    {line}" for line in GENERATE.strip().splitlines()[:3]
    )
    async with open_server() as served:
        await served.api.deploy("one", body)
        done = await served.api.run("one")
        assert done["state"] == "succeeded", done
        answer = (await served.api.get(f"/v1/instances/{done['id']}/timeline")).json
    assert answer["state"] == "succeeded"
    numbers = {batch["number"] for batch in answer["batches"]}
    assert len(answer["commands"]) >= 2
    for command in answer["commands"]:
        assert command["batch"] in numbers
        assert 0 <= command["submitted"] <= command["started"] <= command["finished"]
        assert command["finished"] <= answer["now"]
    assert all(batch["reason"] for batch in answer["batches"])
    (span,) = answer["spans"]
    assert span["name"] == "thinking"
    assert span["began"] <= answer["commands"][0]["submitted"]


async def test_a_server_that_stops_ends_the_stream_with_a_word(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        async with served.api.stream("GET", "/v1/stats/stream") as stream:
            await stream.next()
            await wait_all_tasks_blocked()
            served.web.shutdown.set()
            with trio.fail_after(30):
                kind = ""
                while kind != "bye":
                    kind, _ = await stream.next()
