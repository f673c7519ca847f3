"""A client of the Model Context Protocol in Wasm, and a server of it on loopback."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.services import Grants, Outgoing
from pie_trio.errors import GuestFailedError
from tests.application.conftest import OpenLauncher, program_of
from tests.application.outgoing.servers import (
    NO_TLS,
    Reply,
    Seen,
    listen,
    open_server,
)

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher

LIMIT_SECONDS = 120
PLAIN = {"outgoing": Outgoing(make_ssl_context=lambda: NO_TLS)}
SESSION = "session-1"

ADD = {
    "name": "add",
    "description": "Add two numbers.",
    "inputSchema": {
        "type": "object",
        "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
        "required": ["a", "b"],
    },
}


@dataclass
class McpServer:
    """Answers requests of the protocol, and checks what a client has to send.

    Attributes:
        streams: Answer with events instead of JSON.
        methods: In order.
    """

    streams: bool = False
    methods: list[str] = field(default_factory=list)

    def __call__(self, seen: Seen) -> Reply:
        if seen.method == "DELETE":
            assert seen.headers["mcp-session-id"] == SESSION
            self.methods.append("DELETE")
            return Reply(204)
        accepted = seen.headers["accept"]
        assert "application/json" in accepted
        assert "text/event-stream" in accepted
        message = json.loads(seen.body)
        self.methods.append(message["method"])
        if message["method"] != "initialize":
            assert seen.headers["mcp-session-id"] == SESSION
            assert seen.headers["mcp-protocol-version"] == "2025-06-18"
        if "id" not in message:
            return Reply(202)
        try:
            result = self.answer(message["method"], message["params"])
            answer: dict[str, Any] = {"result": result}
        except LookupError as error:
            answer = {"error": {"code": -32602, "message": str(error)}}
        return self.write({"jsonrpc": "2.0", "id": message["id"], **answer})

    def write(self, answer: dict[str, Any]) -> Reply:
        session = ("mcp-session-id", SESSION)
        if not self.streams:
            kind = ("content-type", "application/json; charset=utf-8")
            return Reply(200, (kind, session), json.dumps(answer).encode())
        progress = {"jsonrpc": "2.0", "method": "notifications/progress"}
        body = "".join(
            f"event: message\r\ndata: {json.dumps(one)}\r\n\r\n"
            for one in (progress, answer)
        )
        kind = ("content-type", "text/event-stream")
        return Reply(200, (kind, session), body.encode())

    def answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            assert params["clientInfo"]["name"] == "inferlet"
            info = {"name": "adder", "version": "1"}
            return {"protocolVersion": "2025-06-18", "serverInfo": info}
        if method == "tools/list":
            if "cursor" not in params:
                return {"tools": [ADD], "nextCursor": "more"}
            return {"tools": [{"name": "fail", "inputSchema": {"type": "object"}}]}
        if params["name"] == "fail":
            content = [{"type": "text", "text": "it broke"}]
            return {"content": content, "isError": True}
        if params["name"] != "add":
            raise LookupError(f"unknown tool {params['name']}")
        total = params["arguments"]["a"] + params["arguments"]["b"]
        return {"content": [{"type": "text", "text": str(total)}, {"type": "image"}]}


async def run(launcher: Launcher, body: str, port: int) -> Any:
    program = program_of(body, parameters="url: str")
    url = f"http://127.0.0.1:{port}/mcp"
    grants = Grants(http=(f"127.0.0.1:{port}",))
    with trio.fail_after(LIMIT_SECONDS):
        instance = launcher.prepare(program, {"url": url}, grants=grants)
        return json.loads(await instance.run())


@pytest.mark.parametrize("streams", [False, True])
async def test_the_tools_of_a_server_become_tools(
    open_fake: OpenLauncher, streams: bool
) -> None:
    served = McpServer(streams)
    body = (
        "async with McpClient(url) as client:\n"
        "    tools = await client.tools(prefix='x_')\n"
        "    calls = [ToolCall('x_add', {'a': 1, 'b': 2}), ToolCall('x_fail', {})]\n"
        "    results = await run_tools(calls, tools)\n"
        "    return [client.server['serverInfo']['name'], [t.spec() for t in tools],\n"
        "            [r.text for r in results], await client.call_tool('add', {'a': 2, 'b': 2})]"
    )
    async with open_fake(services=PLAIN) as launcher, open_server(served) as server:
        name, specs, texts, total = await run(launcher, body, server.port)
    assert name == "adder"
    assert [spec["function"]["name"] for spec in specs] == ["x_add", "x_fail"]
    assert specs[0]["function"]["parameters"] == ADD["inputSchema"]
    assert texts == ["3\n[image]", '{"error": "it broke"}']
    assert total == "4\n[image]"
    assert served.methods[:2] == ["initialize", "notifications/initialized"]
    assert served.methods[-1] == "DELETE"


async def test_what_a_server_refuses_is_an_error_with_its_words(
    open_fake: OpenLauncher,
) -> None:
    body = (
        "async with McpClient(url) as client:\n"
        "    try: await client.call_tool('none', {})\n"
        "    except McpError as error: return [str(error), error.code]"
    )
    async with (
        open_fake(services=PLAIN) as launcher,
        open_server(McpServer()) as server,
    ):
        found = await run(launcher, body, server.port)
    assert found == ["tools/call: unknown tool none", -32602]


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(404, body=b"nothing here"), "status 404: 'nothing here'"),
        (Reply(200, body=b"<html>"), "answered without a result: '<html>'"),
        (
            Reply(200, body=b'{"jsonrpc": "2.0", "id": 99, "result": {}}'),
            "without a result",
        ),
    ],
)
async def test_what_is_no_server_of_tools_is_named(
    open_fake: OpenLauncher, reply: Reply, message: str
) -> None:
    body = "async with McpClient(url) as client: pass"
    async with (
        open_fake(services=PLAIN) as launcher,
        open_server(lambda _: reply) as server,
    ):
        with pytest.raises(GuestFailedError) as caught:
            await run(launcher, body, server.port)
    assert caught.value.kind == "McpError"
    assert message in str(caught.value)


async def test_an_answer_is_there_before_its_stream_ends(
    open_fake: OpenLauncher,
) -> None:
    events = [
        {"jsonrpc": "2.0", "method": "notifications/message"},
        {"jsonrpc": "2.0", "id": 1, "method": "ping"},  # the server's own number 1
        {"jsonrpc": "2.0", "id": 1, "result": {"serverInfo": {"name": "endless"}}},
    ]

    async def handle(stream: trio.SocketStream) -> None:
        data = bytes(await stream.receive_some())
        if b"notifications/initialized" in data:
            await stream.send_all(b"HTTP/1.1 202 OK\r\ncontent-length: 0\r\n\r\n")
            return
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
            + b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in events)
        )
        await trio.sleep_forever()

    body = "async with McpClient(url) as client: return client.server['serverInfo']"
    async with open_fake(services=PLAIN) as launcher, listen(handle) as port:
        assert await run(launcher, body, port) == {"name": "endless"}
