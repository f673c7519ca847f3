"""What a server counts, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from quart import request

from pie_trio.application.server.prometheus import Counter, Gauge, Histogram
from pie_trio.application.server.registry import error_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.server.registry import InstanceRegistry
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
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class ServerMetrics:
    """Counts what happens on a server.

    Args:
        models: Whose traces are read; see :meth:`watch_traces`.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = models
        self._last_step = dict.fromkeys(models, 0)
        self._last_command = dict.fromkeys(models, float("-inf"))
        self.requests = Counter("pie_requests_total", "HTTP requests by route.")
        self.launched = Counter("pie_instances_launched_total", "Launches by program.")
        self.ended = Counter("pie_instances_ended_total", "Ends of instances by state.")
        self.failures = Counter(
            "pie_instance_failures_total", "Failed instances by the code of the error."
        )
        self.evictions = Counter(
            "pie_evictions_total", "Instances that were ended since pages were short."
        )
        self.first_event_seconds = Histogram(
            "pie_first_event_seconds",
            "From a launch to the first that the program tells: a message, a line or its end.",
            SECONDS,
        )
        self.instance_seconds = Histogram(
            "pie_instance_seconds", "From launch to end.", SECONDS
        )
        self.batch_sizes = Histogram(
            "pie_batch_size", "Commands in a step of the device.", SIZES
        )
        self.step_seconds = Histogram(
            "pie_step_seconds", "Steps of the device.", SECONDS
        )
        self.wait_seconds = Histogram(
            "pie_queue_wait_seconds",
            "From a command's submission to its batch.",
            SECONDS,
        )
        self.tokens = Counter("pie_tokens_total", "New tokens that were computed.")
        self.sampled = Counter(
            "pie_tokens_sampled_total", "Tokens sampled for instances that have ended."
        )

    async def count_request(self) -> None:
        """Count the request that is handled."""
        rule = request.url_rule
        route = "none" if rule is None else str(rule.rule)
        method = request.method if request.method in METHODS else "other"
        self.requests.add(method=method, route=route)

    def count_launch(self, instance: RunningInstance) -> None:
        """Count a launch."""
        self.launched.add(program=instance.program)

    def count_end(self, instance: RunningInstance, error: Exception | None) -> None:
        """Count an end."""
        self.ended.add(state=instance.state)
        if error is not None and instance.state == "failed":
            code = str(error_fields(error)["code"])
            self.failures.add(code=code)
            if code == "out-of-pages":
                self.evictions.add()
        if instance.ended_clock is not None:
            self.instance_seconds.observe(
                instance.ended_clock - instance.launched_clock
            )
        if instance.first_event_clock is not None:
            self.first_event_seconds.observe(
                instance.first_event_clock - instance.launched_clock
            )
        self.sampled.add(float(instance.usage().get("tokens_sampled", 0)))

    async def watch_traces(self) -> None:
        """Read the traces of all models again and again, until cancelled."""
        while True:
            await trio.sleep(READ_SECONDS)
            self.read_traces()

    def read_traces(self) -> None:
        """Count the steps and commands since the last time."""
        for name, model in self._models.items():
            trace = model.batcher.trace
            steps = trace.steps_after(self._last_step[name])
            for step in steps:
                self.batch_sizes.observe(step.size, model=name, kind=step.kind.lower())
                self.step_seconds.observe(step.finished_at - step.chosen_at, model=name)
                self.tokens.add(step.num_tokens, model=name)
            commands = trace.commands_after(self._last_command[name])
            for command in commands:
                if command.batched_at:
                    self.wait_seconds.observe(
                        command.batched_at - command.submitted_at, model=name
                    )
            if steps:
                self._last_step[name] = steps[0].number
            if commands:
                self._last_command[name] = commands[0].finished_at

    def render(self, state: ServerState) -> str:
        """Return everything in Prometheus's text format."""
        self.read_traces()
        metrics = [
            *(self.requests, self.launched, self.ended, self.failures, self.evictions),
            *(self.first_event_seconds, self.instance_seconds, self.batch_sizes),
            *(self.step_seconds, self.wait_seconds, self.tokens, self.sampled),
            *self._gauges(state.registry),
        ]
        return "\n".join(line for metric in metrics for line in metric.lines()) + "\n"

    def _gauges(self, registry: InstanceRegistry) -> list[Gauge]:
        running = Gauge("pie_instances_running", "Instances, children of others too.")
        running.set(registry.launcher.num_running)
        pages = Gauge("pie_pages", "KV pages on the device by state.")
        swapped = Gauge("pie_pages_swapped", "KV pages in host memory.")
        exported = Gauge("pie_exports", "Exports of pages.")
        moves = Counter(
            "pie_page_moves_total", "Times that pages moved to host memory."
        )
        waiting = Gauge("pie_commands_unfinished", "Commands that have not finished.")
        for name, model in self._models.items():
            pool = model.pool
            pages.set(pool.num_free, model=name, state="free")
            pages.set(pool.num_pages - pool.num_free, model=name, state="used")
            swapped.set(len(pool.swapped), model=name)
            exported.set(len(model.exports), model=name)
            moves.set(pool.num_moves, model=name)
            waiting.set(model.batcher.num_unfinished, model=name)
        return [running, pages, swapped, exported, moves, waiting]
