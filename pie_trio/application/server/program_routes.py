"""``/v1/programs``: upload, list, look at and delete programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import request

from pie_trio.application.lifecycle.programs import ComponentProgram, SourceProgram
from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.owners import authenticate, authorize
from pie_trio.application.server.program_store import StoredProgram
from pie_trio.application.server.program_tables import ProgramRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart.wrappers import Response

    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_program_routes"]


def add_program_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""

    async def list_programs() -> Response:
        owner = authenticate(request)
        return answer_json(
            {"programs": [_brief(p, state) for p in state.programs.rows(owner)]}
        )

    async def put_program(name: str) -> Response:
        owner = authorize(request, "upload")

        async def check(source: SourceProgram) -> None:
            await state.inspector.inspect(source, owner=owner.name)

        row, outcome = await state.programs.put(
            name, request.body, owner=owner, check=check
        )
        answer = await describe(row, name, owner) | {"outcome": outcome}
        return answer_json(answer, 201 if outcome == "created" else 200)

    async def get_program(name: str) -> Response:
        owner = authenticate(request)
        row = state.programs.row(name, owner=owner)
        if row is not None and request.args.get("wait", "") in ("1", "true"):
            await state.programs.components.wait(row.sha256)
            row = state.programs.row(name, owner=owner)
        return answer_json(await describe(row, name, owner))

    async def describe(
        row: ProgramRow | None, name: str, owner: Owner
    ) -> dict[str, Any]:
        """Return all about a program; less about a component that is not ready."""
        if row is not None and row.is_component:
            found = _brief(row, state)
            if found["state"] != "ready":
                return found
        program = await state.programs.find(name, owner=owner)
        described = await state.inspector.inspect(program.source, owner=owner.name)
        return _full(program, described, state)

    async def delete_program(name: str) -> Response:
        await state.programs.delete(name, owner=authorize(request, "upload"))
        return answer_json({"name": name, "deleted": True})

    one = "/v1/programs/<name>"
    app.add_url_rule("/v1/programs", view_func=list_programs, methods=["GET"])
    app.add_url_rule(one, view_func=put_program, methods=["PUT"])
    app.add_url_rule(one, view_func=get_program, methods=["GET"])
    app.add_url_rule(one, view_func=delete_program, methods=["DELETE"])


def _brief(program: StoredProgram | ProgramRow, state: ServerState) -> dict[str, Any]:
    is_built_in = isinstance(program, StoredProgram) and program.is_built_in
    is_component = (
        program.is_component
        if isinstance(program, ProgramRow)
        else isinstance(program.source, ComponentProgram)
    )
    progress, message = (
        state.programs.components.state(program.sha256)
        if is_component
        else ("ready", "")
    )
    failure = {"message": message} if message else {}
    return {
        "name": program.name,
        "sha256": program.sha256,
        "bytes": program.num_bytes,
        "uploaded_at": program.uploaded_at,
        "built_in": is_built_in,
        "kind": "component" if is_component else "source",
        "state": progress,
        **failure,
    }


def _full(
    program: StoredProgram, described: Mapping[str, Any], state: ServerState
) -> dict[str, Any]:
    source = program.source
    return {
        **_brief(program, state),
        "digest": source.digest,
        "modules": sorted(source.modules) if isinstance(source, SourceProgram) else [],
        "documentation": described["documentation"],
        "arguments": described["arguments"],
        "readme": program.readme,
    }
