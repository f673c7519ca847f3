"""Who is told of each launch and each end: metrics, the log, and traces if they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.application.server.server_log import log_end, log_launch

if TYPE_CHECKING:
    from pie_trio.application.server.metrics import ServerMetrics
    from pie_trio.application.server.registry import InstanceRegistry
    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.server.telemetry import Telemetry

__all__ = ["observe_instances"]


def observe_instances(
    registry: InstanceRegistry,
    metrics: ServerMetrics,
    telemetry: Telemetry | None = None,
) -> None:
    """Tell metrics, log and traces what a registry launches, and how that ends."""

    def tell_launch(instance: RunningInstance) -> None:
        metrics.count_launch(instance)
        log_launch(instance)
        if telemetry is not None:
            telemetry.begin_instance(instance)

    def tell_end(instance: RunningInstance, error: Exception | None) -> None:
        metrics.count_end(instance, error)
        log_end(instance, error)
        if telemetry is not None:
            telemetry.end_instance(instance, error)

    registry.on_launched, registry.on_ended = tell_launch, tell_end
