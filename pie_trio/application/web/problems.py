"""How errors look to a client: one shape of JSON, whoever refuses."""

from __future__ import annotations

import json
from http import HTTPStatus

__all__ = ["RefusedError", "problem_body", "problem_code"]

# Python renames phrases from version to version, so clients get names of our own.
_CODES = {
    400: "bad-request",
    401: "unauthorized",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "timed-out",
    409: "conflict",
    411: "length-required",
    413: "too-large",
    415: "unsupported-type",
    417: "expectation-failed",
    422: "invalid-argument",
    426: "upgrade-required",
    429: "too-many",
    431: "headers-too-large",
    500: "internal",
    501: "unsupported",
    503: "unavailable",
    505: "http-version",
}


class RefusedError(Exception):
    """A request that is answered by the server itself, before or instead of a handler.

    Args:
        status: 400 to 599.
        message: What was expected and what came; the client reads it.
        headers: More headers of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


def problem_code(status: int) -> str:
    """Return the name of an error's kind, which does not change."""
    if status in _CODES:
        return _CODES[status]
    try:
        return HTTPStatus(status).phrase.lower().replace(" ", "-")
    except ValueError:
        return f"http-{status}"


def problem_body(status: int, message: str) -> bytes:
    """Return the JSON body of an error: ``{"error": {"status", "code", "message"}}``."""
    error = {"status": status, "code": problem_code(status), "message": message}
    return json.dumps({"error": error}).encode()
