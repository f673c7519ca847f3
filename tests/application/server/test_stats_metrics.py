"""Metrics of requests, tokens, commands and programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.application.server import metrics

if TYPE_CHECKING:
    import pytest

    from tests.application.server.clients import Api
    from tests.application.server.conftest import OpenServer

GENERATE = "context = Context()\nawait context.fill('hello')\nawait context.generate(max_tokens=5).text()"


async def numbers(api: Api) -> dict[str, float]:
    text = (await api.get("/metrics")).body.decode()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (x.rpartition(" ") for x in lines)}


async def test_answers_are_counted_by_route_and_status(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.get("/v1/instances/nobody")
        await served.api.get("/v1/instances/nobody-else")
        await served.api.get("/v1/nothing")
        found = await numbers(served.api)
    one = '{method="GET",route="/v1/instances/<instance_id>",status="404"}'
    assert found[f"pie_responses_total{one}"] == 2
    assert found['pie_responses_total{method="GET",route="none",status="404"}'] == 1
    route = '{route="/v1/instances/<instance_id>"}'
    assert found[f"pie_response_seconds_count{route}"] == 2


async def test_a_body_that_is_refused_is_counted(open_server: OpenServer) -> None:
    async with open_server() as served:
        answer = await served.api.ask("POST", "/v1/instances", b"no JSON")
        found = await numbers(served.api)
    assert answer.status == 400
    labels = '{method="POST",route="/v1/instances",status="400"}'
    assert found[f"pie_responses_total{labels}"] == 1


async def test_times_to_the_first_and_to_each_token_are_known(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("one", GENERATE)
        await served.api.deploy("none", "return 1")
        done = await served.api.run("one")
        await served.api.run("none")
        found = await numbers(served.api)
    assert found["pie_first_token_seconds_count"] == 1, "the other one sampled none"
    assert 0 < found["pie_first_token_seconds_sum"] <= done["seconds"]
    assert found['pie_token_seconds_count{model="fake"}'] >= 4
    assert 0 < found['pie_token_seconds_sum{model="fake"}'] <= done["seconds"]
    ok = 'pie_commands_total{kind="forward",model="fake",outcome="ok"}'
    assert found[ok] >= 5
    assert found['pie_instances_suspended{model="fake"}'] == 0


async def test_programs_are_no_unbounded_labels(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_PROGRAMS", 2)
    async with open_server() as served:
        for name in ("a", "b", "c", "d", "a"):
            await served.api.deploy(name, "return 1")
            await served.api.run(name)
        found = await numbers(served.api)
    launched = {
        name.partition('"')[2].partition('"')[0]: value
        for name, value in found.items()
        if name.startswith("pie_instances_launched_total")
    }
    assert launched == {"a": 2, "b": 1, "other": 2}


async def test_tasks_are_as_many_as_before_once_nothing_runs(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        await served.api.deploy("one", GENERATE)
        before = (await numbers(served.api))["pie_tasks"]
        await served.api.run("one")
        assert (await numbers(served.api))["pie_tasks"] == before
        async with served.api.stream("GET", "/v1/stats/stream"):
            assert (await numbers(served.api))["pie_tasks"] > before
