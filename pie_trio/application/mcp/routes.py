"""``/mcp``: JSON-RPC in, one JSON document or a stream of messages out. It keeps no sessions.

A session's number is only what a client's cancellations belong to.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any, cast

import trio
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException

from pie_trio._version import __version__
from pie_trio.application.mcp.calls import ToolRun
from pie_trio.application.mcp.protocol import (
    HANDSHAKE_VERSIONS,
    INTERNAL_ERROR,
    INVALID_PARAMS,
    INVALID_REQUEST,
    META,
    METHOD_NOT_FOUND,
    MODERN_VERSIONS,
    REFUSED,
    McpError,
    error_message,
    read_call,
    result_message,
)
from pie_trio.application.mcp.tools import find_tool, list_tools
from pie_trio.application.server.answers import (
    RETRY_SECONDS,
    answer_json,
    problem_of,
)
from pie_trio.application.server.owners import authenticate, authorize
from pie_trio.application.web import make_event_stream
from pie_trio.application.web.feeds import HEARTBEAT
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from quart.wrappers import Response

    from pie_trio.application.mcp.protocol import Call, RequestId
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.running import EventReader, RunningInstance
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["add_mcp_routes"]

SESSION = "mcp-session-id"
CAPABILITIES = {"tools": {"listChanged": False}}
SERVER_INFO = {"name": "pie", "title": "Pie", "version": __version__}
CANCELLED = "the client has cancelled the call"

Running = dict[tuple[str, str, "RequestId"], "RunningInstance"]
"""Calls by owner, session and number of the request."""


def add_mcp_routes(app: WebApp, state: ServerState) -> None:
    """Add the route; errors in it have JSON-RPC's shape."""
    routes = Blueprint("mcp", __name__)
    routes.register_error_handler(McpError, _answer_mcp_error)
    routes.register_error_handler(PieError, _answer_error)
    routes.register_error_handler(HTTPException, _answer_http_error)
    running: Running = {}

    async def post() -> Response:
        owner = authenticate(request)
        body: bytes = await request.body
        by_name = {name.lower(): value for name, value in request.headers.items()}
        call = read_call(body, by_name)
        try:
            if call.request_id is None:
                _note(call, running, owner)
                return TrioResponse(b"", 202)
            if call.method == "tools/call":
                return await _call_tool(state, call, running)
            result = await _answer(state, call, owner)
        except McpError as error:
            error.request_id = call.request_id
            raise
        except PieError as error:
            raise _as_mcp_error(error, call.request_id) from error
        headers = dict[str, str]()
        if call.method == "initialize":
            headers[SESSION] = secrets.token_urlsafe(16)
        return answer_json(result_message(call, result), headers=headers)

    async def delete() -> Response:
        authenticate(request)
        return TrioResponse(b"", 204)  # there is nothing that a session keeps

    routes.add_url_rule("/mcp", "post", post, methods=["POST"])
    routes.add_url_rule("/mcp", "delete", delete, methods=["DELETE"])
    routes.add_url_rule("/mcp", "others", _refuse, methods=["GET", "PUT", "PATCH"])
    app.register_blueprint(routes)


async def _answer(state: ServerState, call: Call, owner: Owner) -> dict[str, Any]:
    match call.method:
        case "initialize":
            asked = call.params.get("protocolVersion")
            chosen = asked if asked in HANDSHAKE_VERSIONS else HANDSHAKE_VERSIONS[0]
            return {
                "protocolVersion": chosen,
                "capabilities": CAPABILITIES,
                "serverInfo": SERVER_INFO,
            }
        case "server/discover" if call.is_modern:
            return {
                "supportedVersions": list(MODERN_VERSIONS),
                "capabilities": CAPABILITIES,
                "_meta": {f"{META}serverInfo": SERVER_INFO},
                **_NOT_CACHED,
            }
        case "ping":
            return {}
        case "tools/list":
            tools = await list_tools(state, owner)
            return {"tools": tools, **(_NOT_CACHED if call.is_modern else {})}
        case _:
            raise McpError(
                METHOD_NOT_FOUND,
                f"there is no method {call.method!r}: this server has tools/list and "
                "tools/call",
                status=404 if call.is_modern else 200,
            )


_NOT_CACHED = {"ttlMs": 0, "cacheScope": "private"}


def _note(call: Call, running: Running, owner: Owner) -> None:
    """Take what a client tells without wanting an answer."""
    number: object = call.params.get("requestId")
    if call.method == "notifications/cancelled" and isinstance(number, str | int):
        key = (owner.name, request.headers.get(SESSION, ""), number)
        if (instance := running.get(key)) is not None:
            instance.cancel(CANCELLED)


async def _call_tool(state: ServerState, call: Call, running: Running) -> Response:
    owner = authorize(request, "launch")
    assert call.request_id is not None, "it is answered"
    arguments: object = call.params.get("arguments") or {}
    if not isinstance(arguments, dict):
        raise McpError(INVALID_PARAMS, "arguments must be an object, by name")
    program = await find_tool(state, call.params.get("name"), owner)
    described = await state.inspector.inspect(program.source, owner=owner.name)
    instance = await state.registry.launch(
        program.source,
        cast("dict[str, Any]", arguments),
        owner=owner,
        manifest=program.manifest,
    )
    instance.end_input()
    run = ToolRun(
        instance.instance_id,
        described.get("result") or {},
        progress_token=call.progress_token,
        max_bytes=state.registry.limits.max_answer_bytes,
    )
    # Without a session nobody knows whose call a number means.
    if not call.is_modern and (session := request.headers.get(SESSION)):
        for key in [key for key, one in running.items() if one.state != "running"]:
            del running[key]
        running[owner.name, session, call.request_id] = instance
    reader = instance.attach()
    if "text/event-stream" in request.headers.get("accept", ""):
        seconds = state.registry.limits.heartbeat_seconds
        response = make_event_stream(_stream(reader, run, call, seconds))
    else:
        with reader:
            async for batch in reader:
                run.add(batch)
        response = answer_json(result_message(call, run.result()))
    response.headers["x-instance-id"] = instance.instance_id
    return response


async def _stream(
    reader: EventReader, run: ToolRun, call: Call, heartbeat_seconds: float
) -> AsyncGenerator[bytes]:
    with reader:
        while True:
            is_over = False
            told = list[dict[str, Any]]()
            # Opened and closed between two yields: none may happen inside.
            with trio.move_on_after(heartbeat_seconds) as beat:
                batch = await anext(reader, None)
                is_over = batch is None
                try:
                    told += run.add(batch) if batch is not None else ()
                except PieError as error:
                    told.append(error_message(_as_mcp_error(error, call.request_id)))
                    is_over = True
                else:
                    if is_over:
                        told.append(result_message(call, run.result()))
            if beat.cancelled_caught:
                yield HEARTBEAT
            elif told:
                yield b"".join(map(_encode, told))
            if is_over:
                return


def _encode(message: Mapping[str, Any]) -> bytes:
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")
    return b"event: message\ndata: " + data + b"\n\n"


def _as_mcp_error(error: PieError, request_id: RequestId | None = None) -> McpError:
    """Return an error of the server in MCP's words."""
    problem = problem_of(error)
    status: int = problem["status"]
    message = problem["message"]
    code = INTERNAL_ERROR if status >= 500 else REFUSED
    data = {"code": problem["code"]}
    return McpError(code, message, data=data, status=status, request_id=request_id)


async def _refuse() -> Response:
    error = McpError(
        INVALID_REQUEST,
        f"/mcp takes POST, and not {request.method}: there is no stream of its own for what "
        "the server tells",
    )
    return answer_json(error_message(error), 405, {"allow": "POST, DELETE"})


async def _answer_mcp_error(error: McpError) -> Response:
    headers = dict[str, str]()
    if error.status in RETRY_SECONDS:
        headers["retry-after"] = RETRY_SECONDS[error.status]
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="pie"'
    return answer_json(error_message(error), error.status, headers)


async def _answer_error(error: PieError) -> Response:
    return await _answer_mcp_error(_as_mcp_error(error))


async def _answer_http_error(error: HTTPException) -> Response:
    status = error.code or 500
    message = (error.description or "") if status < 500 else "the server failed"
    code = INVALID_REQUEST if status < 500 else INTERNAL_ERROR
    return await _answer_mcp_error(McpError(code, message, status=status))
