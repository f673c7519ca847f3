"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from quart import g, request

from pie_trio.application.server.registry import error_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart.typing import ResponseTypes

    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.server.state import ServerState
    from pie_trio.control.served_model import ServedModel

__all__ = ["ServerMetrics"]

READ_SECONDS = 2.0
"""How often the traces are read, which keep the latest commands and steps only."""

SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")
"""Others count as one: clients may make up as many as they like."""
MAX_PROGRAMS = 100
"""Names of programs that are counted apart; the others are ``other``. Clients name programs."""
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

# A time beside each number, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no types


class ServerMetrics:
    """Counts what happens on a server.

    What is of a model has its name, and where a model has several replicas, the number of one.

    Args:
        models: Whose traces are read; see :meth:`watch_traces`.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        has_replicas = any(len(model.replicas) > 1 for model in models.values())
        of_model = ["model", "replica"] if has_replicas else ["model"]
        self._engines = {
            (name, str(one.number))[: len(of_model)]: one
            for name, model in models.items()
            for one in model.replicas
        }
        self._programs = set[str]()
        self._last_step = dict.fromkeys(self._engines, 0)
        self._last_command = dict.fromkeys(self._engines, float("-inf"))
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "pie_requests",
            "HTTP requests by route.",
            ["method", "route"],
            registry=registry,
        )
        self.responses = Counter(
            "pie_responses",
            "Answers to HTTP requests by route and status; streams when they begin.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.response_seconds = Histogram(
            "pie_response_seconds",
            "From a request to the head of its answer.",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self.launched = Counter(
            "pie_instances_launched",
            f"Launches by program: the first {MAX_PROGRAMS} by name.",
            ["program"],
            registry=registry,
        )
        self.ended = Counter(
            "pie_instances_ended",
            "Ends of instances by state.",
            ["state"],
            registry=registry,
        )
        self.failures = Counter(
            "pie_instance_failures",
            "Failed instances by the code of the error.",
            ["code"],
            registry=registry,
        )
        self.evictions = Counter(
            "pie_evictions",
            "Instances that were ended since pages were short.",
            registry=registry,
        )
        self.first_event_seconds = Histogram(
            "pie_first_event_seconds",
            "From a launch to the first that the program tells: a message, a line or its end.",
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "pie_first_token_seconds",
            "From a launch to the first token that was sampled for it (TTFT); of ended instances.",
            buckets=SECONDS,
            registry=registry,
        )
        self.token_seconds = Histogram(
            "pie_token_seconds",
            "Of forwards of one token, from submission to result: from token to token in a decode "
            "stream (ITL).",
            of_model,
            buckets=SECONDS,
            registry=registry,
        )
        self.commands = Counter(
            "pie_commands",
            "Finished commands by kind and outcome: ok, or the class of the error.",
            [*of_model, "kind", "outcome"],
            registry=registry,
        )
        self.instance_seconds = Histogram(
            "pie_instance_seconds",
            "From launch to end.",
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_sizes = Histogram(
            "pie_batch_size",
            "Commands in a step of the device.",
            [*of_model, "kind"],
            buckets=SIZES,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "pie_step_seconds",
            "Steps of the device.",
            of_model,
            buckets=SECONDS,
            registry=registry,
        )
        self.wait_seconds = Histogram(
            "pie_queue_wait_seconds",
            "From a command's submission to its batch.",
            of_model,
            buckets=SECONDS,
            registry=registry,
        )
        self.tokens = Counter(
            "pie_tokens", "New tokens that were computed.", of_model, registry=registry
        )
        self.sampled = Counter(
            "pie_tokens_sampled",
            "Tokens sampled for instances that have ended.",
            registry=registry,
        )
        self.running = Gauge(
            "pie_instances_running",
            "Instances, children of others too.",
            registry=registry,
        )
        self.pages = Gauge(
            "pie_pages",
            "KV pages on the device by state.",
            [*of_model, "state"],
            registry=registry,
        )
        self.swapped = Gauge(
            "pie_pages_swapped",
            "KV pages in host memory.",
            of_model,
            registry=registry,
        )
        self.moves = Gauge(
            "pie_page_moves",
            "Times that pages moved to host memory.",
            of_model,
            registry=registry,
        )
        self.suspended = Gauge(
            "pie_instances_suspended",
            "Instances whose pages are in host memory.",
            of_model,
            registry=registry,
        )
        self.exported = Gauge(
            "pie_exports", "Exports of pages.", of_model, registry=registry
        )
        self.placed = Gauge(
            "pie_instances_placed",
            "Instances that use a model, by where they are placed.",
            of_model,
            registry=registry,
        )
        self.ready = Gauge(
            "pie_engine_ready",
            "1 where there is an engine, 0 while it is started again or lost.",
            of_model,
            registry=registry,
        )
        self.unfinished = Gauge(
            "pie_commands_unfinished",
            "Commands that have not finished.",
            of_model,
            registry=registry,
        )
        self.tasks = Gauge(
            "pie_tasks", "Of the server's event loop.", registry=registry
        )

    async def count_request(self) -> None:
        """Count the request that is handled."""
        g.request_began_at = trio.current_time()
        self.requests.labels(*_request_labels()).inc()

    async def count_response(self, response: ResponseTypes) -> ResponseTypes:
        """Count the answer to the request that is handled."""
        method, route = _request_labels()
        self.responses.labels(method, route, str(response.status_code)).inc()
        if (began_at := g.get("request_began_at")) is not None:
            self.response_seconds.labels(route).observe(trio.current_time() - began_at)
        return response

    def count_launch(self, instance: RunningInstance) -> None:
        """Count a launch."""
        is_new = instance.program not in self._programs
        if is_new and len(self._programs) < MAX_PROGRAMS:
            self._programs.add(instance.program)
            is_new = False
        self.launched.labels("other" if is_new else instance.program).inc()

    def count_end(self, instance: RunningInstance, error: Exception | None) -> None:
        """Count an end."""
        self.ended.labels(instance.state).inc()
        if error is not None and instance.state == "failed":
            code = str(error_fields(error)["code"])
            self.failures.labels(code).inc()
            if code == "out-of-pages":
                self.evictions.inc()
        if instance.ended_clock is not None:
            self.instance_seconds.observe(
                instance.ended_clock - instance.launched_clock
            )
        if instance.first_event_clock is not None:
            self.first_event_seconds.observe(
                instance.first_event_clock - instance.launched_clock
            )
        if instance.first_token_clock is not None:
            self.first_token_seconds.observe(
                instance.first_token_clock - instance.launched_clock
            )
        self.sampled.inc(instance.usage().get("tokens_sampled", 0))

    async def watch_traces(self) -> None:
        """Read the traces of all models again and again, until cancelled."""
        while True:
            await trio.sleep(READ_SECONDS)
            self.read_traces()

    def read_traces(self) -> None:
        """Count the steps and commands since the last time."""
        for names, model in self._engines.items():
            trace = model.batcher.trace
            steps = trace.steps_after(self._last_step[names])
            for step in steps:
                self.batch_sizes.labels(*names, step.kind.lower()).observe(step.size)
                seconds = step.finished_at - step.chosen_at
                self.step_seconds.labels(*names).observe(seconds)
                self.tokens.labels(*names).inc(step.num_tokens)
            commands = trace.commands_after(self._last_command[names])
            for command in commands:
                kind = command.kind.lower()
                self.commands.labels(*names, kind, command.outcome).inc()
                if command.num_tokens == 1 and command.outcome == "ok":
                    seconds = command.finished_at - command.submitted_at
                    self.token_seconds.labels(*names).observe(seconds)
                if command.batched_at:
                    seconds = command.batched_at - command.submitted_at
                    self.wait_seconds.labels(*names).observe(seconds)
            if steps:
                self._last_step[names] = steps[0].number
            if commands:
                self._last_command[names] = commands[0].finished_at

    def render(self, state: ServerState) -> bytes:
        """Return everything in Prometheus's text format."""
        self.read_traces()
        self.running.set(state.registry.launcher.num_running)
        self.tasks.set(trio.lowlevel.current_statistics().tasks_living)
        for names, model in self._engines.items():
            pool = model.pool
            self.pages.labels(*names, "free").set(pool.num_free)
            self.pages.labels(*names, "used").set(pool.num_pages - pool.num_free)
            self.swapped.labels(*names).set(len(pool.swapped))
            self.moves.labels(*names).set(pool.num_moves)
            tenants = model.batcher.tenants
            self.suspended.labels(*names).set(sum(t.is_suspended for t in tenants))
            self.exported.labels(*names).set(len(model.exports))
            self.placed.labels(*names).set(model.num_inferlets)
            self.ready.labels(*names).set(model.state == "ready")
            self.unfinished.labels(*names).set(model.batcher.num_unfinished)
        return generate_latest(self._registry)


def _request_labels() -> tuple[str, str]:
    """Return method and route of the request that is handled, of which there are few."""
    rule = request.url_rule
    route = "none" if rule is None else str(rule.rule)
    return request.method if request.method in METHODS else "other", route
