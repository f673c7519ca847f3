"""Programs as tools: which there are, and what they say of themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.mcp.protocol import INVALID_PARAMS, McpError
from pie_trio.errors import BusyError, GuestFailedError, NotFoundError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.server.stored_programs import StoredProgram

__all__ = ["RESULT", "TOOL", "find_tool", "is_result_told", "is_wrapped", "list_tools"]

TOOL = "tool"
"""What a manifest's ``publish`` says of a program that is a tool."""
RESULT = "result"


async def list_tools(state: ServerState, owner: Owner) -> list[dict[str, Any]]:
    """Return the tools of an owner, as MCP describes them."""
    found = list[dict[str, Any]]()
    for name in sorted(state.programs.names(owner)):
        try:
            program = await state.programs.find(name, owner=owner, waits=False)
            if TOOL in program.manifest.publish:
                described = await state.inspector.inspect(
                    program.source, owner=owner.name
                )
                found.append(_describe(program, described))
        except (NotFoundError, BusyError, GuestFailedError, ProgramError):
            continue  # it was deleted meanwhile, or is a component that is not ready
    return found


async def find_tool(state: ServerState, name: object, owner: Owner) -> StoredProgram:
    """Return the program that is a tool.

    Raises:
        McpError: There is none of this name.
    """
    if isinstance(name, str):
        try:
            program = await state.programs.find(name, owner=owner)
        except NotFoundError:
            pass
        else:
            if TOOL in program.manifest.publish:
                return program
            raise McpError(
                INVALID_PARAMS,
                f"the program {name!r} is no tool: its manifest has to say so, as "
                f'`publish = ["{TOOL}"]` under [tool.pie]',
            )
    there = ", ".join(tool["name"] for tool in await list_tools(state, owner))
    raise McpError(
        INVALID_PARAMS, f"there is no tool {name!r}: the server has {there or 'none'}"
    )


def is_result_told(schema: Mapping[str, Any]) -> bool:
    """Say whether a tool's description says what it returns."""
    return bool(schema) and schema.get("type") != "null"


def is_wrapped(schema: Mapping[str, Any]) -> bool:
    """Say whether a result is a member of an object, since what MCP takes must be one."""
    return schema.get("type") != "object"


def _describe(program: StoredProgram, described: Mapping[str, Any]) -> dict[str, Any]:
    manifest, documentation = program.manifest, described["documentation"]
    tool: dict[str, Any] = {
        "name": program.name,
        "description": documentation or manifest.description or program.name,
        "inputSchema": described["arguments"],
    }
    result: Mapping[str, Any] = described.get("result") or {}
    if is_result_told(result):
        tool["outputSchema"] = (
            {"type": "object", "properties": {RESULT: result}, "required": [RESULT]}
            if is_wrapped(result)
            else result
        )
    return tool
