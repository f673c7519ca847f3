"""Answers: JSON, and one shape for every error."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from quart_trio.wrappers import TrioResponse

from pie_trio.application.server.failures import (
    DrainingError,
    ProgramStoreError,
    StorageFullError,
    TooLargeError,
    UnauthorizedError,
)
from pie_trio.application.server.registry import error_fields
from pie_trio.application.web.problems import problem_code
from pie_trio.errors import (
    BadArgumentError,
    BusyError,
    ConfigError,
    ForbiddenError,
    GuestFailedError,
    GuestTrappedError,
    LimitError,
    NotFoundError,
    PieError,
    TimedOutError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart.wrappers import Response

__all__ = ["answer_error", "answer_json", "problem_of"]

# The first that fits counts.
STATUSES: tuple[tuple[type[PieError], int], ...] = (
    (BadArgumentError, 422),
    (BusyError, 409),  # a component that is being compiled
    (ConfigError, 422),  # a program that is none
    (GuestFailedError, 422),
    (GuestTrappedError, 422),
    (TimedOutError, 422),
    (LimitError, 429),
    (NotFoundError, 404),
    (UnauthorizedError, 401),
    (ForbiddenError, 403),
    (TooLargeError, 413),
    (DrainingError, 503),
    (StorageFullError, 507),
    (ProgramStoreError, 500),
)
RETRY_SECONDS = {409: "5", 429: "1", 503: "5"}


def answer_json(
    value: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an answer of JSON."""
    return TrioResponse(
        json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"),
        status,
        dict(headers or {}),
        content_type="application/json",
    )


def problem_of(error: PieError) -> dict[str, Any]:
    """Return ``status``, ``code`` and ``message``, and the author's ``traceback`` if any."""
    status = next((code for kind, code in STATUSES if isinstance(error, kind)), 500)
    fields = error_fields(error)
    if fields["code"] == "internal":
        fields["code"] = problem_code(status)
    return {"status": status, **fields}


async def answer_error(error: PieError) -> Response:
    """Return the answer to a request that failed."""
    problem = problem_of(error)
    status: int = problem["status"]
    headers = {"retry-after": RETRY_SECONDS[status]} if status in RETRY_SECONDS else {}
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="pie"'
    return answer_json({"error": problem}, status, headers)
