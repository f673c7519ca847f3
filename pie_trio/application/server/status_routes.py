"""Health, metrics and models."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from quart_trio.wrappers import TrioResponse

from pie_trio.application.server.answers import answer_json

if TYPE_CHECKING:
    from quart.wrappers import Response

    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_status_routes"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_status_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""
    created = int(time.time())

    async def healthz() -> Response:
        return answer_json({"status": "ok"})

    async def readyz() -> Response:
        if state.registry.is_draining:
            return answer_json({"status": "draining"}, 503)
        return answer_json({"status": "ready"})

    async def metrics() -> Response:
        return TrioResponse(state.metrics.render(state), content_type=METRICS_TYPE)

    async def models() -> Response:
        found = [
            {
                "id": name,
                "object": "model",
                "created": created,
                "owned_by": "pie",
                "max_positions": model.info.max_positions,
            }
            for name, model in state.models.items()
        ]
        return answer_json({"object": "list", "data": found})

    for path, view in (
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/metrics", metrics),
        ("/v1/models", models),
    ):
        app.add_url_rule(path, view_func=view, methods=["GET"])
