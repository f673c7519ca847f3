"""The server's log and its traces."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.server import telemetry
from pie_trio.application.server.metrics import ServerMetrics
from pie_trio.application.server.observing import observe_instances
from pie_trio.application.server.server_log import (
    note_instance,
    open_server_log,
    say,
)
from pie_trio.application.server.telemetry import Telemetry, open_telemetry

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from trio.testing import MockClock

    from tests.application.server.conftest import OpenServer, Served

logger = logging.getLogger("pie_trio.somewhere")

GENERATE = "context = Context()\nawait context.fill('hello')\nawait context.generate(max_tokens=3).text()"


def observe(served: Served, found: Telemetry | None = None) -> None:
    metrics = ServerMetrics(served.launcher.models)
    observe_instances(served.registry, metrics, found)


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_of_json_tells_when_where_and_what(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_server_log("json", "info"):
        logger.info("%d things\nin two lines", 3)
        logger.debug("not this")
        say("Pie serves")
        try:
            raise ZeroDivisionError("by nothing")
        except ZeroDivisionError:
            logger.exception("it failed")
    logger.warning("nor what comes after")
    first, said, failed = lines(capsys)
    assert first["message"] == "3 things\nin two lines"
    assert (first["level"], first["logger"]) == ("info", "pie_trio.somewhere")
    assert first["time"].endswith("Z")
    assert "T" in first["time"]
    assert said["message"] == "Pie serves"
    assert "ZeroDivisionError: by nothing" in failed["exception"]


def test_lines_of_text_name_the_instance(capsys: pytest.CaptureFixture[str]) -> None:
    with open_server_log("text", "warning"):
        logger.info("not this")
        logger.warning("something odd")
        say("Pie serves")
    (line, said) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING pie_trio.somewhere: something odd")
    assert said == "Pie serves"


async def test_the_lines_of_a_task_have_its_instance(
    capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    async def run(name: str) -> None:
        note_instance(name)
        await trio.sleep(1)
        logger.warning("woken")

    with open_server_log("json", "warning"):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "a-1")
            nursery.start_soon(run, "b-2")
        logger.warning("outside")
    found = [line.get("instance") for line in lines(capsys)]
    assert set(found[:2]) == {"a-1", "b-2"}
    assert found[2] is None


async def test_launches_and_ends_are_logged_with_their_fields(
    open_server: OpenServer, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_server() as served:
        observe(served)
        await served.api.deploy("one", GENERATE)
        await served.api.deploy("fails", "raise ValueError('a secret')")
        with open_server_log("json", "info"):
            done = await served.api.run("one")
            await served.api.run("fails")
            found = lines(capsys)
    assert any("POST /v1/instances" in line["message"] for line in found)
    launched, ended, _, failed = (line for line in found if "event" in line)
    assert (launched["event"], launched["instance"]) == ("launch", done["id"])
    assert (ended["event"], ended["state"]) == ("end", "succeeded")
    assert (ended["program"], ended["owner"]) == ("one", "local")
    assert ended["tokens_sampled"] == done["tokens_sampled"] > 0
    assert failed["state"] == "failed"
    assert "secret" not in json.dumps(found), "what programs say is their owners'"


def test_without_settings_nothing_is_traced() -> None:
    for environment in (
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
        {"OTEL_SERVICE_NAME": "x"},
    ):
        with open_telemetry(environment) as found:
            assert found is None


def test_missing_packages_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry, "NEEDED", ("no_such_package.of_traces",))
    with open_telemetry({"OTEL_TRACES_EXPORTER": "otlp"}) as found:
        assert found is None
    assert "pip install 'pie-trio[otel]'" in caplog.text


def test_an_exporter_that_is_not_known_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    with open_telemetry({"OTEL_TRACES_EXPORTER": "zipkin"}) as found:
        assert found is None
    assert "expected otlp, console or none" in caplog.text


async def test_requests_and_instances_are_spans_of_one_trace(
    open_server: OpenServer,
) -> None:
    pytest.importorskip("opentelemetry.sdk")
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
        InMemorySpanExporter,
    )

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    found = Telemetry(provider)
    async with open_server(on_app=found.watch) as served:
        observe(served, found)
        await served.api.deploy("one", GENERATE)
        await served.api.deploy("fails", "raise ValueError")
        exporter.clear()
        trace_id = "0af7651916cd43dd8448eb211c80319c"
        asked = {"program": "one"}
        parent = f"00-{trace_id}-b7ad6b7169203331-01"
        await served.api.ask(
            "POST",
            "/v1/instances",
            asked,
            traceparent=parent,
            accept="application/json",
        )
        await served.api.run("fails")
        await served.api.get("/v1/instances/nobody")
    spans: dict[str, ReadableSpan] = {}
    for span in exporter.get_finished_spans():
        spans.setdefault(span.name, span)
    launch, one = spans["POST /v1/instances"], spans["instance one"]
    assert launch.context is not None
    assert f"{launch.context.trace_id:032x}" == trace_id
    assert one.parent is not None
    assert one.parent.span_id == launch.context.span_id
    assert one.attributes is not None
    assert one.attributes["pie.state"] == "succeeded"
    assert int(str(one.attributes["pie.tokens_sampled"])) > 0
    failed = spans["instance fails"]
    assert failed.status.status_code.name == "ERROR"
    assert failed.status.description == "program-failed"
    missing = spans["GET /v1/instances/<instance_id>"]
    assert missing.attributes is not None
    assert missing.attributes["http.response.status_code"] == 404
