"""Health and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import request
from quart_trio.wrappers import TrioResponse

from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.owners import authorize, open_to_all

if TYPE_CHECKING:
    from quart.wrappers import Response

    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_status_routes"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_status_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""

    @open_to_all
    async def healthz() -> Response:
        return answer_json({"status": "ok"})

    @open_to_all
    async def readyz() -> Response:
        if state.registry.is_draining:
            return answer_json({"status": "draining"}, 503)
        states = {name: model.replicas.state for name, model in state.models.items()}
        if any(found != "ready" for found in states.values()):
            return answer_json({"status": "engine", "models": states}, 503)
        compiling = state.programs.components.num_compiling
        return answer_json({"status": "ready", "compiling": compiling})

    async def metrics() -> Response:
        authorize(request, "metrics")
        return TrioResponse(state.metrics.render(state), content_type=METRICS_TYPE)

    for path, view in (
        ("/healthz", healthz),
        ("/readyz", readyz),
        ("/metrics", metrics),
    ):
        app.add_url_rule(path, view_func=view, methods=["GET"])
