"""``/v1/programs``: upload, list, look at and delete programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import request

from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.owners import authenticate
from pie_trio.application.server.program_store import StoredProgram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart.wrappers import Response

    from pie_trio.application.lifecycle.programs import SourceProgram
    from pie_trio.application.server.program_tables import ProgramRow
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_program_routes"]


def add_program_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""

    async def list_programs() -> Response:
        owner = authenticate(request)
        return answer_json(
            {"programs": [_brief(p) for p in state.programs.rows(owner)]}
        )

    async def put_program(name: str) -> Response:
        owner = authenticate(request)

        async def check(source: SourceProgram) -> None:
            await state.inspector.inspect(source, owner=owner.name)

        program, outcome = await state.programs.put(
            name, request.body, owner=owner, check=check
        )
        described = await state.inspector.inspect(program.source, owner=owner.name)
        answer = _full(program, described) | {"outcome": outcome}
        return answer_json(answer, 201 if outcome == "created" else 200)

    async def get_program(name: str) -> Response:
        owner = authenticate(request)
        program = await state.programs.find(name, owner=owner)
        described = await state.inspector.inspect(program.source, owner=owner.name)
        return answer_json(_full(program, described))

    async def delete_program(name: str) -> Response:
        await state.programs.delete(name, owner=authenticate(request))
        return answer_json({"name": name, "deleted": True})

    one = "/v1/programs/<name>"
    app.add_url_rule("/v1/programs", view_func=list_programs, methods=["GET"])
    app.add_url_rule(one, view_func=put_program, methods=["PUT"])
    app.add_url_rule(one, view_func=get_program, methods=["GET"])
    app.add_url_rule(one, view_func=delete_program, methods=["DELETE"])


def _brief(program: StoredProgram | ProgramRow) -> dict[str, Any]:
    is_built_in = isinstance(program, StoredProgram) and program.is_built_in
    return {
        "name": program.name,
        "sha256": program.sha256,
        "bytes": program.num_bytes,
        "uploaded_at": program.uploaded_at,
        "built_in": is_built_in,
    }


def _full(program: StoredProgram, described: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_brief(program),
        "digest": program.source.digest,
        "modules": sorted(program.source.modules),
        "documentation": described["documentation"],
        "arguments": described["arguments"],
        "readme": program.readme,
    }
