"""A server with two replicas of one model: clients see one model, operators see both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.application.server.test_stats_metrics import numbers

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer

WAITING = """
context = Context()
await context.fill('hello')
await context.forward()
await send('here')
await receive()
"""
GENERATE = """
context = Context()
await context.fill('hello')
return await context.generate(max_tokens=4).tokens()
"""


async def test_clients_see_one_model(open_server: OpenServer) -> None:
    async with open_server(num_replicas=2) as served:
        answer = (await served.api.get("/v1/models")).json
        assert [model["id"] for model in answer["data"]] == ["fake"]
        assert (await served.api.get("/readyz")).status == 200


async def test_metrics_tell_the_replicas_apart(open_server: OpenServer) -> None:
    async with open_server(num_replicas=2) as served:
        await served.api.deploy("waits", WAITING)
        await served.api.deploy("one", GENERATE)
        async with served.api.launch("waits") as events:
            await events.until("message")
            done = await served.api.run("one")
            found = await numbers(served.api)
    first, second = (f'{{model="fake",replica="{n}"}}' for n in (0, 1))
    assert found[f"pie_instances_placed{first}"] == 1
    assert found[f"pie_instances_placed{second}"] == 0, "the other one has ended"
    assert found[f"pie_engine_ready{first}"] == found[f"pie_engine_ready{second}"] == 1
    assert found[f"pie_tokens_total{first}"] > 0
    assert found[f"pie_tokens_total{second}"] == done["tokens_computed"] > 0
    used = [
        found[f'pie_pages{{model="fake",replica="{n}",state="used"}}'] for n in (0, 1)
    ]
    assert used == [1, 0]


async def test_the_overview_adds_the_replicas_up(open_server: OpenServer) -> None:
    async with open_server(num_replicas=2) as served:
        await served.api.deploy("waits", WAITING)
        async with (
            served.api.launch("waits") as one,
            served.api.launch("waits") as other,
        ):
            await one.until("message")
            await other.until("message")
            (model,) = (await served.api.get("/v1/stats")).json["models"]
            instances = (await served.api.get("/v1/stats")).json["instances"]
            timelines = [
                (await served.api.get(f"/v1/instances/{row['id']}/timeline")).json
                for row in instances
            ]
    assert (model["pages"], model["pages_free"]) == (128, 126)
    assert model["map"]["cells"] == 128
    assert [row["pages"] for row in instances] == [1, 1]
    assert len(model["batches"]) == 2
    assert (
        model["replicas"]
        == [
            {
                "state": "ready",
                "pages": 64,
                "pages_free": 63,
                "unfinished": 0,
                "instances": 1,
            }
        ]
        * 2
    )
    for timeline in timelines:
        assert len(timeline["commands"]) == len(timeline["batches"]) == 1
