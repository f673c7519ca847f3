"""What is no request of MCP, or not one that is served, is refused in JSON-RPC's shape."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.application.server.clients import text_of

if TYPE_CHECKING:
    from tests.application.server.conftest import OpenServer

META = "io.modelcontextprotocol/"
MODERN = "2026-07-28"


def ask(method: str = "tools/list", **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}


def modern(method: str = "tools/list", version: str = MODERN, **params: Any) -> Any:
    meta: dict[str, Any] = {
        f"{META}protocolVersion": version,
        f"{META}clientCapabilities": {},
    }
    return ask(method, **params, _meta=meta)


HEADERS = {"mcp_protocol_version": MODERN, "mcp_method": "tools/list"}

REFUSED: dict[str, tuple[Any, dict[str, str], int, int, str]] = {
    "no JSON": (b"{", {}, 400, -32700, "no JSON"),
    "deep": (b"[" * 10**5, {}, 400, -32700, "no JSON"),
    "a batch": ([ask()], {}, 400, -32600, "one request"),
    "no method": ({"jsonrpc": "2.0", "id": 1}, {}, 400, -32600, "expected a request"),
    "no version": ({"id": 1, "method": "ping"}, {}, 400, -32600, "expected a request"),
    "a wrong id": (ask() | {"id": [1]}, {}, 400, -32600, "id must be"),
    "params in order": (ask() | {"params": [1]}, {}, 400, -32602, "by name"),
    "an unknown method": (ask("prompts/list"), {}, 200, -32601, "tools/call"),
    "the same, later": (
        *(modern("prompts/list"), HEADERS | {"mcp_method": "prompts/list"}),
        *(404, -32601, "tools/call"),
    ),
    "an unknown version": (ask(), {"mcp_protocol_version": "1"}, 400, -32602, "_meta"),
    "a later version": (
        *(
            modern(version="2099-01-01"),
            HEADERS | {"mcp_protocol_version": "2099-01-01"},
        ),
        *(400, -32022, "not known"),
    ),
    "no capabilities": (
        ask(_meta={f"{META}protocolVersion": MODERN}),
        *(HEADERS, 400, -32602, "clientCapabilities"),
    ),
    "no header": (modern(), {}, 400, -32020, "mcp-protocol-version"),
    "another method": (*(modern("ping"), HEADERS, 400, -32020, "mcp-method"),),
    "another name": (
        modern("tools/call", name="a"),
        HEADERS | {"mcp_method": "tools/call", "mcp_name": "b"},
        *(400, -32020, "mcp-name"),
    ),
    "arguments in order": (
        ask("tools/call", name="real", arguments=[1]),
        *({}, 400, -32602, "by name"),
    ),
    "no name": (ask("tools/call"), {}, 400, -32602, "there is no tool None"),
}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code", "words"), REFUSED.values(), ids=REFUSED
)
async def test_what_is_refused(
    open_server: OpenServer,
    body: Any,
    headers: dict[str, str],
    status: int,
    code: int,
    words: str,
) -> None:
    async with open_server() as served:
        answer = await served.api.ask("POST", "/mcp", body, **headers)
    error = answer.json["error"]
    assert (answer.status, error["code"]) == (status, code), error
    assert words in error["message"]
    sent: Any = body
    is_read = isinstance(body, dict) and sent.get("id") in (1, 7)
    assert answer.json["id"] == (sent["id"] if is_read else None)


async def test_notifications_are_taken_and_other_methods_of_http_are_not(
    open_server: OpenServer,
) -> None:
    said = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    async with open_server() as served:
        answer = await served.api.ask("POST", "/mcp", said)
        assert (answer.status, answer.body) == (202, b"")
        answer = await served.api.ask("GET", "/mcp")
        assert answer.status == 405
        assert answer.json["error"]["code"] == -32600


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2024-11-05", "2025-11-25"),
        ("2099-01-01", "2025-11-25"),
    ],
)
async def test_a_handshake_agrees_on_a_version(
    open_server: OpenServer, asked: str, chosen: str
) -> None:
    async with open_server() as served:
        body = ask("initialize", protocolVersion=asked)
        answer = await served.api.ask("POST", "/mcp", body)
    assert answer.json["result"]["protocolVersion"] == chosen


async def test_a_client_that_takes_no_stream_gets_one_document(
    open_server: OpenServer,
) -> None:
    program = b'# /// pie\n# publish = ["tool"]\n# ///\n' + text_of("return 'x'")
    async with open_server() as served:
        await served.api.ask("PUT", "/v1/programs/tool", program)
        answer = await served.api.ask(
            *("POST", "/mcp", ask("tools/call", name="tool")),
            accept="application/json",
        )
    assert json.loads(answer.body)["result"]["content"] == [
        {"type": "text", "text": "x"}
    ]


async def test_a_tool_is_no_model(open_server: OpenServer) -> None:
    program = b'# /// pie\n# publish = ["tool"]\n# ///\n' + text_of("return 'x'")
    async with open_server() as served:
        await served.api.ask("PUT", "/v1/programs/tool", program)
        models = (await served.api.get("/v1/models")).json["data"]
    assert "tool" not in [model["id"] for model in models]
