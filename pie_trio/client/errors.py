"""What a client raises.

::

    RemoteError
    |-- UnreachableError        no server answers; also a ConfigError
    |-- BrokenConnectionError   it ended before the answer did
    |-- RefusedError            the server refuses a request
    |   |-- InvalidRequestError    400, 413, 422: the request, or the program in it
    |   |-- DeniedError            401, 403: a key, or what it allows
    |   |-- MissingError           404: no such program or instance, or no more
    |   |-- ConflictError          409: not as things stand
    |   `-- OverloadedError        429, 503: try again
    `-- InstanceFailedError     an instance has ended without a result
        |-- ProgramFailedError     its program raised, with its traceback
        `-- InstanceCancelledError it was ended from outside

A program that raises while it is uploaded is a :class:`ProgramFailedError` too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.errors import ConfigError, PieError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BrokenConnectionError",
    "ConflictError",
    "DeniedError",
    "InstanceCancelledError",
    "InstanceFailedError",
    "InvalidRequestError",
    "MissingError",
    "OverloadedError",
    "ProgramFailedError",
    "RefusedError",
    "RemoteError",
    "UnreachableError",
    "failure_of",
    "refusal_of",
]


class RemoteError(PieError):
    """Something went wrong with a server, or on it.

    Attributes:
        status: Of the server's answer; 0 if there is none.
        code: The server's name of this kind of error; empty if there is none.
    """

    def __init__(self, message: str, *, status: int = 0, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


class UnreachableError(RemoteError, ConfigError):
    """No server answers at the URL."""


class BrokenConnectionError(RemoteError):
    """The connection has ended before the answer did."""


class RefusedError(RemoteError):
    """The server refuses a request."""


class InvalidRequestError(RefusedError):
    """The request makes no sense, is too large, or the program in it cannot be used."""


class DeniedError(RefusedError):
    """The key is missing or wrong, or does not allow this."""


class MissingError(RefusedError):
    """There is nothing of this name, or it has ended."""


class ConflictError(RefusedError):
    """It cannot be done as things stand; the message says why."""


class OverloadedError(RefusedError):
    """There are as many as allowed, or the server stops: try again later."""


class InstanceFailedError(RemoteError):
    """An instance has ended without a result."""


class ProgramFailedError(InstanceFailedError):
    """The program raised. Its traceback, with the author's lines, is a note of this error.

    Attributes:
        kind: Name of the program's exception type.
        message: What that says.
        traceback: As Python prints it.
    """

    def __init__(
        self, *, kind: str, message: str, traceback: str, status: int = 0
    ) -> None:
        text = f"{kind}: {message}" if message else kind
        super().__init__(text, status=status, code="program-failed")
        self.kind, self.message, self.traceback = kind, message, traceback
        if traceback:
            self.add_note(f"On the server:\n{traceback.rstrip()}")


class InstanceCancelledError(InstanceFailedError):
    """The instance was ended from outside: by a client, or because its client left."""


_BY_STATUS: dict[int, type[RefusedError]] = {
    400: InvalidRequestError,
    401: DeniedError,
    403: DeniedError,
    404: MissingError,
    409: ConflictError,
    413: InvalidRequestError,
    422: InvalidRequestError,
    429: OverloadedError,
    503: OverloadedError,
}


def refusal_of(status: int, fields: Mapping[str, Any]) -> RemoteError:
    """Return the error that an answer with ``code`` and ``message`` stands for."""
    if "traceback" in fields:
        return _program_failed(fields, status)
    message = str(fields.get("message") or f"the server answers {status}")
    kind = _BY_STATUS.get(status, RefusedError)
    return kind(message, status=status, code=str(fields.get("code", "")))


def failure_of(fields: Mapping[str, Any]) -> InstanceFailedError:
    """Return the error that an instance's event ``error`` stands for."""
    if "traceback" in fields:
        return _program_failed(fields, 0)
    code = str(fields.get("code", ""))
    kind = InstanceCancelledError if code == "cancelled" else InstanceFailedError
    return kind(str(fields.get("message", "")), code=code)


def _program_failed(fields: Mapping[str, Any], status: int) -> ProgramFailedError:
    return ProgramFailedError(
        kind=str(fields.get("kind", "")),
        message=str(fields.get("message", "")),
        traceback=str(fields["traceback"]),
        status=status,
    )
