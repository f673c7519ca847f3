"""Health, metrics and models."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import trio

from pie_trio.application.engines.device import open_process_device
from pie_trio.config import EngineProcessConfig
from tests.application.engines.openers import start_fake
from tests.application.web.clients import HANDSHAKE

if TYPE_CHECKING:
    from pathlib import Path

    from tests.application.server.conftest import OpenServer

SAMPLE = re.compile(
    r'[a-z_]+(\{[a-z_]+="([^"\\\n]|\\.)*"(,[a-z_]+="([^"\\\n]|\\.)*")*\})? -?[0-9.e+-]+'
)


async def test_models_have_the_shape_of_openai(open_server: OpenServer) -> None:
    async with open_server() as served:
        answer = (await served.api.get("/v1/models")).json
    assert answer["object"] == "list"
    (model,) = answer["data"]
    assert (model["id"], model["object"]) == ("fake", "model")
    assert isinstance(model["created"], int)


async def test_a_server_is_ready_until_it_stops(open_server: OpenServer) -> None:
    async with open_server() as served:
        assert (await served.api.get("/healthz")).status == 200
        assert (await served.api.get("/readyz")).json == {
            "status": "ready",
            "compiling": 0,
        }
        await served.registry.drain(1)
        assert (await served.api.get("/healthz")).status == 200
        assert (await served.api.get("/readyz")).status == 503


async def test_metrics_count_what_happened(open_server: OpenServer) -> None:
    body = "context = Context()\nawait context.fill('hello')\nreturn await context.generate(max_tokens=2).text()"
    async with open_server() as served:
        await served.api.deploy("one", body)
        await served.api.deploy("fails", "raise ValueError")
        done = await served.api.run("one")
        assert done["state"] == "succeeded", done
        await served.api.run("fails")
        answer = await served.api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.body.decode().splitlines()
    samples = [line for line in lines if not line.startswith("#")]
    assert all(SAMPLE.fullmatch(line) for line in samples), lines
    assert 'pie_instances_launched_total{program="one"} 1.0' in lines
    assert 'pie_instances_ended_total{state="failed"} 1.0' in lines
    assert 'pie_instance_failures_total{code="program-failed"} 1.0' in lines
    assert "pie_instances_running 0.0" in lines
    assert 'pie_requests_total{method="PUT",route="/v1/programs/<name>"} 2.0' in lines
    numbers = dict(line.rsplit(" ", 1) for line in samples)
    assert (
        float(numbers['pie_tokens_total{model="fake"}']) == done["tokens_computed"] > 0
    )
    assert float(numbers["pie_tokens_sampled_total"]) == done["tokens_sampled"] > 0
    assert float(numbers['pie_step_seconds_count{model="fake"}']) > 0
    assert float(numbers['pie_queue_wait_seconds_count{model="fake"}']) > 0
    free, used = (
        float(numbers[f'pie_pages{{model="fake",state="{state}"}}'])
        for state in ("free", "used")
    )
    assert free > 0
    assert used == 0


async def test_steps_are_counted_once(open_server: OpenServer) -> None:
    body = "context = Context()\nawait context.fill('hello')\nawait context.generate(max_tokens=1).text()"
    async with open_server() as served:
        await served.api.deploy("one", body)
        found = list[str]()
        for _ in range(2):
            await served.api.run("one")
            for _ in range(2):
                text = (await served.api.get("/metrics")).body.decode()
                found += re.findall(r"pie_step_seconds_count\S* (\d+)\.0", text)
    first, again, second, last = map(int, found)
    assert first == again
    assert second == last == 2 * first


async def test_a_method_that_was_made_up_is_no_label(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.ask("FROBNICATE", "/v1/models")
        text = (await served.api.get("/metrics")).body.decode()
    assert "FROBNICATE" not in text
    assert 'method="other"' in text


async def test_unknown_paths_and_methods_are_json(open_server: OpenServer) -> None:
    async with open_server() as served:
        assert (await served.api.get("/v1/nothing")).error["code"] == "not-found"
        refused = await served.api.ask("DELETE", "/v1/models")
        assert refused.error["code"] == "method-not-allowed"
        with trio.fail_after(30):
            gone = await served.api.get("/v1/instances/nobody-1")
        assert "there is no instance 'nobody-1'" in gone.error["message"]


async def test_pages_of_other_sites_are_refused(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("hello", "pass")
        evil = {"origin": "https://evil.example", "content_type": "text/plain"}
        for method, path in (
            ("POST", "/v1/programs/hello/run"),
            ("PUT", "/v1/programs/other"),
            ("GET", "/v1/instances"),
        ):
            answer = await served.api.ask(method, path, **evil)
            assert (answer.status, answer.error["code"]) == (403, "forbidden")
        own = await served.api.get("/v1/instances", origin="http://x")  # as Host says
        assert own.json == {"instances": []}
        async with await served.web.connect() as client:
            await client.send(
                HANDSHAKE.replace(b"/ws", b"/v1/ws")
                + b"Origin: https://evil.example\r\n\r\n"
            )
            assert (await client.read_response()).status == 403


async def test_a_server_whose_engine_is_lost_for_good_is_not_ready(
    open_server: OpenServer, tmp_path: Path
) -> None:
    engine = start_fake(tmp_path, config=EngineProcessConfig(max_restarts=0))
    async with open_server(
        engine=engine, open_device=lambda _: open_process_device(engine)
    ) as served:
        assert (await served.api.get("/readyz")).status == 200
        (model,) = served.launcher.models.values()
        lost = trio.Event()
        model.batcher.on_lost = lambda _: lost.set()
        engine.process.kill()
        await lost.wait()
        await model.batcher.wait_restored()
        answer = await served.api.get("/readyz")
        assert answer.status == 503
        assert answer.json["models"] == {"fake": "lost"}
        assert (await served.api.get("/healthz")).status == 200
    engine.close()
