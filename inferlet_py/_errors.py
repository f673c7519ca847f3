"""What a call to the host can raise in an inferlet."""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BadArgumentError",
    "BusyError",
    "CommandCancelledError",
    "EngineFailedError",
    "EngineLostError",
    "ExportLostError",
    "FailedError",
    "ForbiddenError",
    "HostError",
    "LimitError",
    "NotFoundError",
    "OutOfEmbedsError",
    "OutOfPagesError",
    "TimedOutError",
    "UnknownHandleError",
    "UnsupportedError",
    "make_host_error",
]


class HostError(Exception):
    """A call to the host failed; the message says what was expected and what to do.

    Attributes:
        code: The WIT's name for it, as ``out-of-pages``.
        call: Name of the call, as ``alloc_kvpage``; what takes the result of a command by its
            ticket, as ``take_forward``, where the command failed later. Empty if none is known.
        queue: Number of the queue that it was made with.
        ticket: Of the command whose result it was to take.
        pages: Numbers of the KV pages that it was made with.
    """

    code: ClassVar[str] = "internal"
    call: str = ""
    queue: int | None = None
    ticket: int | None = None
    pages: tuple[int, ...] = ()


class BadArgumentError(HostError):
    """An argument has the wrong size or value."""

    code = "invalid-argument"


class UnknownHandleError(HostError):
    """A queue, page or ticket is not this inferlet's, or was given back."""

    code = "unknown-handle"


class OutOfPagesError(HostError):
    """There are fewer free KV pages than the call needs."""

    code = "out-of-pages"


class LimitError(HostError):
    """The inferlet reached one of its limits."""

    code = "limit-exceeded"


class BusyError(HostError):
    """Commands on their way use what the call would change: await them first."""

    code = "busy"


class OutOfEmbedsError(HostError):
    """There are fewer places for hidden states than the call needs."""

    code = "out-of-embeds"


class ForbiddenError(HostError):
    """The inferlet was not granted what the call needs; the message names the grant."""

    code = "forbidden"


class NotFoundError(HostError):
    """There is nothing of that name."""

    code = "not-found"


class FailedError(HostError):
    """The world outside failed: a server that does not answer, a disk that is full."""

    code = "failed"


class UnsupportedError(HostError):
    """The model lacks the trait that the call needs."""

    code = "unsupported"


class CommandCancelledError(HostError):
    """The command was withdrawn before it ran."""

    code = "cancelled"


class TimedOutError(HostError):
    """The inferlet used up its wall time."""

    code = "timed-out"


class EngineFailedError(HostError):
    """The batch failed on the device."""

    code = "engine-failed"


class EngineLostError(EngineFailedError):
    """The engine has ended, and all that it held is gone: pages, embeds, processors.

    What is done from now on waits until it has started again: fill a new context.
    """

    code = "engine-lost"


class ExportLostError(EngineLostError, NotFoundError):
    """An export is known, but its pages are gone with an engine or the server: export it again.

    Whoever makes what it does not find needs no more than ``NotFoundError``, which this is too.
    """


_BY_CODE: dict[str, type[HostError]] = {
    kind.code: kind
    for kind in (
        BadArgumentError,
        UnknownHandleError,
        OutOfPagesError,
        OutOfEmbedsError,
        LimitError,
        BusyError,
        UnsupportedError,
        ForbiddenError,
        NotFoundError,
        FailedError,
        CommandCancelledError,
        TimedOutError,
        EngineFailedError,
        EngineLostError,
    )
}


def make_host_error(code: str, message: str, call: str = "") -> HostError:
    """Return the error that stands for a WIT error code, where ``call`` has failed with it."""
    if call == "import_kvpage" and code == EngineLostError.code:
        return ExportLostError(message)
    return _BY_CODE.get(code, HostError)(message)
