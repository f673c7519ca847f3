"""``/v1/adapters``: list, load and drop the adapters of the models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quart import request

from pie_trio.application.server.adapters import ServedAdapters
from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.owners import authenticate, authorize
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from quart.wrappers import Response

    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_adapter_routes"]


def add_adapter_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""
    adapters = ServedAdapters(
        state.models, state.programs, state.programs.limits.max_adapter_bytes
    )

    async def list_adapters() -> Response:
        authenticate(request)
        return answer_json({"adapters": adapters.list()})

    async def put_adapter(name: str) -> Response:
        model = request.args.get("model", "")
        if request.mimetype == "application/json":
            owner = authorize(request, "admin")
            fields: object = await request.get_json()
            match fields:
                case {"directory": str(directory)} if Path(directory).is_absolute():
                    await adapters.load(model, name, Path(directory), owner=owner)
                case _:
                    raise BadArgumentError(
                        'the body must be {"directory": "/..."}, an absolute path on the '
                        "server's machine, or a zip archive as application/zip"
                    )
        else:
            owner = authorize(request, "upload")
            await adapters.load_sent(model, name, request.body, owner=owner)
        return answer_json({"adapters": adapters.list()}, 201)

    async def delete_adapter(name: str) -> Response:
        owner = authorize(request, "upload")
        adapters.drop(request.args.get("model", ""), name, owner=owner)
        return answer_json({"name": name, "deleted": True})

    one = "/v1/adapters/<path:name>"
    app.add_url_rule("/v1/adapters", view_func=list_adapters, methods=["GET"])
    app.add_url_rule(one, view_func=put_adapter, methods=["PUT"])
    app.add_url_rule(one, view_func=delete_adapter, methods=["DELETE"])
