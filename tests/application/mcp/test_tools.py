"""Programs as tools, asked for by the official client over a real socket."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import httpx2
import pytest
import trio
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client

from tests.application.server.clients import text_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tests.application.server.conftest import OpenServer, Served

LIMIT_SECONDS = 60
ERAS = ["legacy", "2026-07-28", "auto"]
each_era = pytest.mark.parametrize("era", ERAS)
BLOCK = b'# /// pie\n# publish = ["tool"]\n# ///\n'

# The client leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(mcp|httpx2|httpcore2):ResourceWarning"
)


async def deploy_tool(
    served: Served,
    name: str,
    body: str,
    *,
    parameters: str = "",
    returns: str = "",
) -> None:
    text = text_of(body, parameters=parameters).decode()
    if returns:
        text = text.replace("):\n", f") -> {returns}:\n", 1)
    program = BLOCK + text.encode()
    answer = await served.api.ask("PUT", f"/v1/programs/{name}", program)
    assert answer.status == 201, answer.body


@asynccontextmanager
async def connected(served: Served, era: str, *, key: str = "") -> AsyncGenerator[Any]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    url = f"http://127.0.0.1:{served.api.port}/mcp"
    with trio.fail_after(LIMIT_SECONDS):
        async with httpx2.AsyncClient(headers=headers, timeout=None) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, mode=cast("Any", era)) as client:
                yield client


def texts_of(result: Any) -> Sequence[str]:
    return [block.text for block in result.content]


@each_era
async def test_tools_are_the_programs_that_say_so(
    open_server: OpenServer, era: str
) -> None:
    async with open_server() as served:
        await served.api.deploy("plain", "pass")
        await deploy_tool(
            *(served, "add", '"""Add two numbers."""\nreturn a + b'),
            parameters="a: int, b: int = 2",
            returns="int",
        )
        async with connected(served, era) as client:
            (tool,) = (await client.list_tools()).tools
    assert (tool.name, tool.description) == ("add", "Add two numbers.")
    assert tool.input_schema["required"] == ["a"]
    assert tool.input_schema["properties"]["b"]["type"] == "integer"
    assert tool.output_schema is not None
    assert tool.output_schema["properties"]["result"]["type"] == "integer"


@each_era
async def test_a_call_returns_the_result_and_the_messages(
    open_server: OpenServer, era: str
) -> None:
    async with open_server() as served:
        await deploy_tool(
            *(served, "add", "await send('one ')\nawait send('text')\nreturn a + b"),
            parameters="a: int, b: int = 2",
            returns="int",
        )
        async with connected(served, era) as client:
            result = await client.call_tool("add", {"a": 40})
    assert texts_of(result) == ["one text", "42"]
    assert result.structured_content == {"result": 42}
    assert not result.is_error


RETURNS = [
    ("return {'a': [1]}", "dict[str, list[int]]", {"a": [1]}),
    ("return {'a': [1]}", "", {"a": [1]}),
    ("return 'x'", "str", {"result": "x"}),
    ("return [1.5]", "list[float]", {"result": [1.5]}),
    ("return None", "None", None),
    ("return None", "int | None", {"result": None}),
    ("return 1", "int | None", {"result": 1}),
    ("return {'a': 1}", "dict[str, int] | None", {"result": {"a": 1}}),
]


@pytest.mark.parametrize(("body", "returns", "structured"), RETURNS)
@pytest.mark.parametrize("era", ["legacy", "2026-07-28"])
async def test_a_result_fits_the_schema_of_the_tool(
    open_server: OpenServer, era: str, body: str, returns: str, structured: object
) -> None:
    async with open_server() as served:
        await deploy_tool(served, "tool", body, returns=returns)
        async with connected(served, era) as client:
            await client.list_tools()  # then the client validates what comes
            result = await client.call_tool("tool")
    assert result.structured_content == structured


@each_era
async def test_messages_come_as_progress_before_the_result(
    open_server: OpenServer, era: str
) -> None:
    told: list[tuple[float, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        assert total is None
        told.append((progress, message))

    async with open_server() as served:
        body = "await send('first')\nawait send('second')\nreturn 'done'"
        await deploy_tool(served, "slow", body)
        async with connected(served, era) as client:
            result = await client.call_tool("slow", progress_callback=note)
    assert told == [(1, "first"), (2, "second")]
    assert texts_of(result) == ["firstsecond", "done"]


async def test_binary_messages_are_resources(open_server: OpenServer) -> None:
    async with open_server() as served:
        body = "await send('a')\nawait send(b'\\x00\\x01')\nawait send('b')"
        await deploy_tool(served, "image", body)
        async with connected(served, "auto") as client:
            result = await client.call_tool("image")
    first, binary, last = result.content
    assert (first.text, last.text) == ("a", "b")
    assert binary.resource.blob == "AAE="


@each_era
async def test_what_a_tool_raises_is_told_to_the_model(
    open_server: OpenServer, era: str
) -> None:
    async with open_server() as served:
        await deploy_tool(
            *(served, "fails", "await send('so far')\nraise KeyError('lost')"),
            returns="int",
        )
        async with connected(served, era) as client:
            await client.list_tools()
            result = await client.call_tool("fails")
            wrong = await client.call_tool("fails", {"a": 1})
    assert result.is_error
    assert texts_of(result) == ["so far", "KeyError: 'lost'"]
    assert wrong.is_error
    assert "there is no argument 'a'" in texts_of(wrong)[0]


@each_era
async def test_what_is_no_tool_is_an_error_of_the_protocol(
    open_server: OpenServer, era: str
) -> None:
    async with open_server() as served:
        await served.api.deploy("plain", "pass")
        await deploy_tool(served, "real", "pass")
        async with connected(served, era) as client:
            with pytest.raises(MCPError, match=r"there is no tool 'x'.* real"):
                await client.call_tool("x")
            with pytest.raises(MCPError, match=r'publish = \["tool"\]'):
                await client.call_tool("plain")


@each_era
async def test_a_call_that_is_cancelled_cancels_the_program(
    open_server: OpenServer, era: str
) -> None:
    body = (
        "try:\n"
        "    await send('ready')\n"
        "    await sleep(1e6)\n"
        "finally:\n"
        "    print('cleaned up')"
    )
    async with open_server() as served:
        await deploy_tool(served, "holds", body)
        async with connected(served, era) as client, trio.open_nursery() as nursery:

            async def note(
                progress: float, total: float | None, message: str | None
            ) -> None:
                assert (progress, total, message) == (1, None, "ready")
                nursery.cancel_scope.cancel()

            nursery.start_soon(
                lambda: client.call_tool("holds", progress_callback=note)
            )
        (instance,) = served.registry.list(owner=served.owner)
        with trio.fail_after(LIMIT_SECONDS):
            await instance.wait_ended()
        assert instance.state == "cancelled"
        assert [line.text for line in instance.log.lines] == ["cleaned up"]


async def test_users_see_their_own_tools_and_need_a_key(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        ann = served.make_key("ann")
        bob = served.make_key("bob", "launch")
        looks = served.make_key("bob", "metrics")
        program = BLOCK + text_of("return 'hers'")
        api = served.api.with_key(ann)
        assert (await api.ask("PUT", "/v1/programs/hers", program)).status == 201
        async with connected(served, "auto", key=ann) as client:
            assert texts_of(await client.call_tool("hers")) == ["hers"]
        async with connected(served, "auto", key=bob) as client:
            assert (await client.list_tools()).tools == []
            with pytest.raises(MCPError, match="there is no tool 'hers'"):
                await client.call_tool("hers")
        async with connected(served, "auto", key=looks) as client:
            with pytest.raises(MCPError, match="scope launch"):
                await client.call_tool("hers")
        answer = await served.api.ask("POST", "/mcp", {"jsonrpc": "2.0"})
        assert answer.status == 401
        assert "www-authenticate" in answer.headers
