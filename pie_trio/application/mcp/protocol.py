"""Requests and answers of MCP over streamable HTTP, before they mean anything.

Two eras are served, each request for itself. Up to 2025-11-25 a client begins with ``initialize``, and
names a session; since 2026-07-28 each request says in ``_meta`` who sends it, and repeats in headers
what a proxy may want to know.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HANDSHAKE_VERSIONS",
    "MODERN_VERSIONS",
    "Call",
    "McpError",
    "error_message",
    "notification",
    "read_call",
    "result_message",
]

HANDSHAKE_VERSIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
"""Newest first. Those of 2025-03-26 may send several requests in one body, which is refused."""
MODERN_VERSIONS = ("2026-07-28",)

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
INTERNAL_ERROR = -32603
HEADER_MISMATCH = -32020
UNSUPPORTED_VERSION = -32022
REFUSED = -32000
"""The server cannot do it now, or not for this client: the message says why."""

META = "io.modelcontextprotocol/"
NAMED_BY = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
"""What the header ``mcp-name`` repeats."""

RequestId = str | int


class McpError(Exception):
    """A request that is answered by an error of JSON-RPC.

    Args:
        code: Of JSON-RPC, or of MCP.
        message: What was expected, what came, and what to do.
        data: More, as JSON can carry it.
        status: Of HTTP.
        request_id: Of the request, where one could be read.
    """

    def __init__(
        self,
        code: int,
        message: str,
        *,
        data: object = None,
        status: int = 400,
        request_id: RequestId | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.data, self.status = code, data, status
        self.request_id = request_id


@dataclass(frozen=True, slots=True)
class Call:
    """One request, or one notification.

    Attributes:
        method: As ``tools/call``.
        params: By name.
        request_id: None for a notification, which is not answered.
        is_modern: It is of 2026-07-28 or later.
    """

    method: str
    params: Mapping[str, Any]
    request_id: RequestId | None
    is_modern: bool

    @property
    def progress_token(self) -> RequestId | None:
        """Under which the client wants to be told of progress; None if it does not."""
        meta = self.params.get("_meta")
        token: object = None
        if isinstance(meta, dict):
            token = cast("dict[str, object]", meta).get("progressToken")
        return token if isinstance(token, str | int) else None


def read_call(body: bytes, headers: Mapping[str, str]) -> Call:
    """Return what a client asks for.

    Args:
        body: Of the request.
        headers: Of the request, by their names in small letters.

    Raises:
        McpError: It is no request that this server knows how to read.
    """
    try:
        message: object = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise McpError(PARSE_ERROR, f"the body is no JSON: {error}") from None
    if not isinstance(message, dict):
        raise McpError(
            INVALID_REQUEST,
            "expected one request or notification of JSON-RPC, an object: send several "
            "in requests of their own",
        )
    fields = cast("dict[str, Any]", message)
    request_id: object = fields.get("id")
    has_id = "id" in fields
    if has_id and (
        isinstance(request_id, bool) or not isinstance(request_id, str | int)
    ):
        raise McpError(INVALID_REQUEST, "id must be a text or a whole number")
    known = cast("RequestId | None", request_id)
    method, params = fields.get("method"), fields.get("params", {})
    if fields.get("jsonrpc") != "2.0" or not isinstance(method, str):
        raise McpError(
            INVALID_REQUEST,
            'expected a request of JSON-RPC: {"jsonrpc": "2.0", "id": 1, "method": ...}',
            request_id=known,
        )
    if not isinstance(params, dict):
        raise McpError(
            INVALID_PARAMS, "params must be an object, by name", request_id=known
        )
    by_name = cast("dict[str, Any]", params)
    try:
        is_modern = _check_version(method, by_name, headers, is_answered=has_id)
    except McpError as error:
        error.request_id = known
        raise
    return Call(method, by_name, known if has_id else None, is_modern)


def _check_version(
    method: str,
    params: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    is_answered: bool,
) -> bool:
    """Return whether a request is of the later era, and raise if it is of none that is known."""
    version = headers.get("mcp-protocol-version")
    meta: object = params.get("_meta")
    envelope = cast("dict[str, Any]", meta) if isinstance(meta, dict) else {}
    said: object = envelope.get(f"{META}protocolVersion")
    if said is None and (version is None or version in HANDSHAKE_VERSIONS):
        return False
    if not is_answered:
        _check_known(version or said)
        return True
    for key in ("protocolVersion", "clientCapabilities"):
        if f"{META}{key}" not in envelope:
            raise McpError(INVALID_PARAMS, f"params._meta must have {META}{key}")
    name = params.get(NAMED_BY.get(method, ""))
    for header, value in (
        ("mcp-protocol-version", said),
        ("mcp-method", method),
        ("mcp-name", name),
    ):
        if value is not None and _decode(headers.get(header)) != value:
            raise McpError(
                HEADER_MISMATCH,
                f"the header {header} must be what the body says: {value!r}",
            )
    _check_known(said)
    return True


def _check_known(version: object) -> None:
    if version not in MODERN_VERSIONS:
        raise McpError(
            UNSUPPORTED_VERSION,
            f"MCP {version} is not known here: expected {', '.join(MODERN_VERSIONS)}, or "
            f"initialize with {', '.join(HANDSHAKE_VERSIONS)}",
            data={"supported": list(MODERN_VERSIONS), "requested": str(version)},
        )


def _decode(value: str | None) -> str | None:
    """Return what a header says; what is no plain text comes as ``=?base64?...?=``."""
    if value is None or not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode()
    except (binascii.Error, ValueError):
        return None


def result_message(call: Call, result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer to a request."""
    fields = dict(result)
    if call.is_modern:
        fields["resultType"] = "complete"
    return {"jsonrpc": "2.0", "id": call.request_id, "result": fields}


def error_message(error: McpError) -> dict[str, Any]:
    """Return the answer to a request that failed."""
    fields: dict[str, Any] = {"code": error.code, "message": str(error)}
    if error.data is not None:
        fields["data"] = error.data
    return {"jsonrpc": "2.0", "id": error.request_id, "error": fields}


def notification(method: str, **params: object) -> dict[str, Any]:
    """Return what the server tells without being asked."""
    return {"jsonrpc": "2.0", "method": method, "params": params}
