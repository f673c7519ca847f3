"""Errors in OpenAI's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.server.answers import problem_of
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["OpenAIError", "error_body", "refuse_unsupported"]

# By status; what is not here is an `invalid_request_error`.
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIError(PieError):
    """A request that is answered with an error.

    Attributes:
        status: Of the answer.
        param: The parameter that is at fault, if one is.
        error_code: What clients compare.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        status: int = 400,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.error_code = status, param, code


def refuse_unsupported(param: str, why: str) -> OpenAIError:
    """Return the error of a parameter that would change the answer, but is not supported."""
    return OpenAIError(
        f"{param!r} is not supported here: {why}",
        param=param,
        code="unsupported_parameter",
    )


def error_body(error: PieError) -> tuple[int, Mapping[str, Any]]:
    """Return the status and the body that tell a client of an error."""
    if isinstance(error, OpenAIError):
        status, code, param = error.status, error.error_code, error.param
        message = str(error)
    else:
        problem = problem_of(error)
        status, code, param = problem["status"], problem["code"].replace("-", "_"), None
        message = problem["message"]
        if status == 422:  # OpenAI has no other status for what a client did wrong
            status = 400
    kind = TYPES.get(status, "invalid_request_error")
    if status >= 500:
        kind = "server_error"
    return status, {
        "error": {"message": message, "type": kind, "param": param, "code": code}
    }
