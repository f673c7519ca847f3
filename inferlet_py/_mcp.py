"""A client of the Model Context Protocol, over streamable HTTP: its tools become tools here.

See https://modelcontextprotocol.io/specification/2025-06-18/basic/transports. What a server asks of
a client (sampling, roots) is not offered, and what it tells besides answers is not listened to.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any, cast

from inferlet_py._errors import HostError
from inferlet_py._http_stream import http_stream
from inferlet_py._messages import get_version
from inferlet_py._scopes import CancelScope
from inferlet_py._timeouts import move_on_after
from inferlet_py._tools import Tool

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from types import TracebackType

    from inferlet_py._http_stream import HttpStream

__all__ = ["McpClient", "McpError"]

PROTOCOL_VERSION = "2025-06-18"
CLOSE_SECONDS = 2.0
MAX_PAGES = 100
_SHOWN = 200


class McpError(Exception):
    """A server of tools refused a request, or did not answer it.

    Attributes:
        code: Of the error in JSON-RPC; None where the answer itself was wrong.
        data: What the server says besides.
    """

    __module__ = "inferlet_py"

    def __init__(
        self, message: str, *, code: int | None = None, data: Any = None
    ) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class McpClient:
    """A session with a server of tools. Use as an asynchronous context manager.

    The program needs the grant to reach the server's host: ``pie run --allow-http HOST``.

    Args:
        url: Of the server's endpoint.
        headers: That it wants besides, as ``authorization``.

    Attributes:
        server: What it says of itself: ``serverInfo``, ``capabilities``, ``instructions``.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.server: dict[str, Any] = {}
        self._url, self._headers = url, dict(headers or {})
        self._session: dict[str, str] = {}
        self._ids = itertools.count(1)

    async def __aenter__(self) -> McpClient:
        answer = await self.request(
            "initialize",
            {
                "protocolVersion": PROTOCOL_VERSION,
                "capabilities": {},
                "clientInfo": {"name": "inferlet", "version": get_version()},
            },
        )
        self.server = _as_object(answer)
        version = self.server.get("protocolVersion")
        if isinstance(version, str):
            self._session["mcp-protocol-version"] = version
        await self._notify("notifications/initialized")
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if "mcp-session-id" not in self._session:
            return
        with CancelScope(shield=True), move_on_after(CLOSE_SECONDS):
            # A server may not know how to end a session, and it may be gone.
            with contextlib.suppress(HostError):
                async with self._open("DELETE", b""):
                    pass
        self._session.clear()

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return the server's tools as it describes them.

        Raises:
            McpError: It does not say.
        """
        found: list[dict[str, Any]] = []
        params: dict[str, Any] = {}
        for _ in range(MAX_PAGES):
            answer = _as_object(await self.request("tools/list", params))
            found += [_as_object(one) for one in answer.get("tools", [])]
            cursor = answer.get("nextCursor")
            if not cursor:
                return found
            params = {"cursor": cursor}
        raise McpError(f"the server has more than {MAX_PAGES} pages of tools")

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Call a tool, and return the text of its result.

        Raises:
            McpError: The tool failed; its text says why.
        """
        params = {"name": name, "arguments": dict(arguments)}
        answer = _as_object(await self.request("tools/call", params))
        text = _text_of(answer)
        if answer.get("isError"):
            raise McpError(text or f"the tool {name} failed")
        return text

    async def tools(self, *, prefix: str = "") -> list[Tool[..., Any]]:
        """Return the server's tools, for a chat or ``run_tools``.

        Args:
            prefix: Of their names here, where several servers have tools of the same name.
        """
        return [self._make_tool(found, prefix) for found in await self.list_tools()]

    def _make_tool(self, found: Mapping[str, Any], prefix: str) -> Tool[..., Any]:
        name = str(found.get("name", ""))

        async def run(arguments: Mapping[str, Any]) -> str:
            return await self.call_tool(name, arguments)

        return Tool(
            name=prefix + name,
            description=str(found.get("description") or found.get("title") or ""),
            parameters=_as_object(found.get("inputSchema")),
            run=run,
        )

    async def request(self, method: str, params: Mapping[str, Any]) -> Any:
        """Make a request of JSON-RPC, and return its result.

        Raises:
            McpError: The server refused it, or its answer makes no sense.
            HostError: It was not reached: see ``http_stream``.
        """
        number = next(self._ids)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        async with self._open("POST", json.dumps(message).encode()) as answer:
            await self._check(method, answer)
            shown = ""
            async for text in _texts_of(answer):
                shown = shown or text[:_SHOWN]
                for found in _objects_in(text):
                    if found.get("id") == number and "method" not in found:
                        return _result_of(method, found)
        raise McpError(
            f"{method}: the server at {self._url} answered without a result: {shown!r}"
        )

    async def _notify(self, method: str) -> None:
        message = {"jsonrpc": "2.0", "method": method}
        async with self._open("POST", json.dumps(message).encode()) as answer:
            await self._check(method, answer)

    async def _check(self, method: str, answer: HttpStream) -> None:
        """Raise unless the server took the message; note its session."""
        if not answer.head.is_success:
            text = (await answer.read())[:_SHOWN].decode(errors="replace")
            raise McpError(
                f"{method}: the server at {self._url} answered with the status "
                f"{answer.status}: {text!r}"
            )
        if session := answer.head.header("mcp-session-id"):
            self._session["mcp-session-id"] = session

    def _open(self, method: str, body: bytes) -> HttpStream:
        return http_stream(
            method,
            self._url,
            headers={
                "content-type": "application/json",
                "accept": "application/json, text/event-stream",
                **self._session,
                **self._headers,
            },
            body=body,
        )


async def _texts_of(answer: HttpStream) -> AsyncGenerator[str]:
    """Yield the messages in an answer as text: its body, or the events of a stream."""
    kind = answer.head.header("content-type") or ""
    if kind.partition(";")[0].strip().lower() != "text/event-stream":
        yield (await answer.read()).decode(errors="replace")
        return
    async for event in answer.events():
        if event.event == "message":
            yield event.data


def _objects_in(text: str) -> list[dict[str, Any]]:
    """Return the objects of a message: one, or those of a batch; none if it is no JSON."""
    try:
        value: object = json.loads(text)
    except ValueError:
        return []
    if isinstance(value, list):
        return [_as_object(one) for one in cast("list[object]", value)]
    return [_as_object(value)]


def _result_of(method: str, message: Mapping[str, Any]) -> Any:
    """Return the result in an answer.

    Raises:
        McpError: It has an error instead.
    """
    if "error" not in message:
        return message.get("result")
    error = _as_object(message["error"])
    raise McpError(
        f"{method}: {error.get('message') or 'refused'}",
        code=error.get("code"),
        data=error.get("data"),
    )


def _as_object(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _text_of(answer: Mapping[str, Any]) -> str:
    """Return the text of a tool's result; what is no text is named."""
    parts: list[str] = []
    content = cast("list[object]", answer.get("content") or [])
    for block in map(_as_object, content):
        if block.get("type") == "text":
            parts.append(str(block.get("text", "")))
        else:
            parts.append(f"[{block.get('type', 'unknown')}]")
    if not parts and "structuredContent" in answer:
        return json.dumps(answer["structuredContent"], ensure_ascii=False)
    return "\n".join(parts)
