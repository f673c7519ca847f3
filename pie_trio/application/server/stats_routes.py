"""``/v1/stats``: what goes on, as a document or a stream; and the timeline of an instance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import request
from quart_trio.wrappers import TrioResponse

from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.owners import authorize
from pie_trio.application.server.stats import Sample, Sampler
from pie_trio.application.server.stats_timeline import make_timeline
from pie_trio.application.server.stats_views import view_of
from pie_trio.application.web import make_event_stream, until_draining

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from quart.wrappers import Response

    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_stats_routes"]


def add_stats_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""
    sampler = Sampler(state.models)

    async def get_stats() -> Response:
        owner = authorize(request, "launch")
        view = view_of(await sampler.next(), state, sampler, owner)
        return TrioResponse(
            view.snapshot().encode("utf-8", "replace"), content_type="application/json"
        )

    async def stream_stats() -> Response:
        owner = authorize(request, "launch")
        return make_event_stream(_stream(state, sampler, owner))

    async def get_timeline(instance_id: str) -> Response:
        instance = state.registry.get(instance_id, owner=authorize(request, "launch"))
        return answer_json(make_timeline(state, instance))

    for path, view in (
        ("/v1/stats", get_stats),
        ("/v1/stats/stream", stream_stats),
        ("/v1/instances/<instance_id>/timeline", get_timeline),
    ):
        app.add_url_rule(path, view_func=view, methods=["GET"])


async def _stream(
    state: ServerState, sampler: Sampler, owner: Owner
) -> AsyncGenerator[bytes]:
    """Yield a snapshot, then what changes; a snapshot again where a sample was missed."""
    number = 0
    while True:
        taken = list[Sample]()
        # Opened and closed between two yields: none may happen inside.
        async with until_draining():
            taken.append(await sampler.next(number))
        if not taken:
            yield b"event: bye\ndata: {}\n\n"
            return
        if state.gate.is_revoked(owner):
            return
        (sample,) = taken
        view = view_of(sample, state, sampler, owner)
        is_next = number == sample.number - 1 and number > 0
        changes = view.changes() if is_next else None
        number = sample.number
        kind, data = (
            ("snapshot", view.snapshot()) if changes is None else ("changes", changes)
        )
        yield f"event: {kind}\ndata: {data}\n\n".encode("utf-8", "replace")
