"""Spans of requests and instances for OpenTelemetry, where its packages and settings are there.

The packages come with the extra ``otel``. Without them nothing of this is loaded but the question
whether they are there.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from quart import g, has_request_context, request

from pie_trio.application.server.registry import error_fields

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from quart.typing import ResponseTypes

    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.web import WebApp

__all__ = ["Telemetry", "open_telemetry"]

ASKED_BY = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
NEEDED = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
SERVICE = "pie"
HEADERS = ("traceparent", "tracestate")

logger = logging.getLogger(__name__)


class Telemetry:
    """Makes spans.

    Args:
        provider: Where they go.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("pie_trio")
        self._instances: dict[str, Span] = {}

    def watch(self, app: WebApp) -> None:
        """Make a span of each request, also of those that are refused."""
        before = app.before_request_funcs.setdefault(None, [])
        before.insert(0, self.begin_request)
        app.after_request(self.end_request)

    async def begin_request(self) -> None:
        """Begin the span of the request that is handled, below the one of its headers."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import (
            TraceContextTextMapPropagator,
        )

        carrier = {
            key: request.headers[key] for key in HEADERS if key in request.headers
        }
        rule = request.url_rule
        route = "none" if rule is None else str(rule.rule)
        g.otel_span = self._tracer.start_span(
            f"{request.method} {route}",
            TraceContextTextMapPropagator().extract(carrier),
            SpanKind.SERVER,
            {"http.request.method": request.method, "http.route": route},
        )

    async def end_request(self, response: ResponseTypes) -> ResponseTypes:
        """End the span of the request that is handled; a stream's ends when it begins."""
        span: Span | None = g.get("otel_span")
        if span is not None:
            span.set_attribute("http.response.status_code", response.status_code)
            if response.status_code >= 500:
                _fail(span, f"status {response.status_code}")
            span.end()
        return response

    def begin_instance(self, instance: RunningInstance) -> None:
        """Begin the span of an instance, below the request that launches it."""
        from opentelemetry.trace import set_span_in_context

        parent: Span | None = g.get("otel_span") if has_request_context() else None
        self._instances[instance.instance_id] = self._tracer.start_span(
            f"instance {instance.program}",
            None if parent is None else set_span_in_context(parent),
            attributes={
                "pie.instance.id": instance.instance_id,
                "pie.program": instance.program,
                "pie.owner": instance.owner.name,
            },
        )

    def end_instance(self, instance: RunningInstance, error: Exception | None) -> None:
        """End the span of an instance."""
        span = self._instances.pop(instance.instance_id, None)
        if span is None:
            return
        span.set_attribute("pie.state", instance.state)
        for key, value in instance.usage().items():
            if key.startswith("tokens"):
                span.set_attribute(f"pie.{key}", value)
        if error is not None and instance.state == "failed":
            _fail(span, str(error_fields(error)["code"]))
        span.end()


@contextmanager
def open_telemetry(environment: Mapping[str, str]) -> Generator[Telemetry | None]:
    """Send spans where ``OTEL_*`` says for as long as the block is open.

    Yields:
        None if nothing asks for it, or the packages are missing, which is logged.
    """
    provider = _make_provider(environment)
    if provider is None:
        yield None
        return
    try:
        yield Telemetry(provider)
    finally:
        provider.shutdown()  # sends what is left, within its own time limits


def _make_provider(environment: Mapping[str, str]) -> TracerProvider | None:
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    is_off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    if is_off or exporter == "none" or not any(map(environment.get, ASKED_BY)):
        return None
    if not all(map(_is_there, NEEDED)):
        logger.warning(
            "OTEL_* asks for traces, but the packages are missing: pip install 'pie-trio[otel]'"
        )
        return None
    if exporter not in ("", "otlp", "console"):
        logger.warning(
            "OTEL_TRACES_EXPORTER is %r, which Pie does not have: expected otlp, console or "
            "none; no traces are sent",
            exporter[:40],
        )
        return None
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    named = "OTEL_SERVICE_NAME" in environment
    resource = Resource.create({} if named else {"service.name": SERVICE})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    target: Any = (
        ConsoleSpanExporter(out=sys.stderr)
        if exporter == "console"
        else OTLPSpanExporter()
    )
    provider.add_span_processor(BatchSpanProcessor(target))
    return provider


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of a package above it
        return False


def _fail(span: Span, description: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, description))
