"""The whole exception tree of the server.

::

    PieError
    |-- ConfigError        the operator's: before serving; exit code 2
    |   |-- ModelDirectoryError, AdapterError
    |   |-- CacheError
    |   |   `-- DamagedComponentError
    |   `-- ProgramError   a program that cannot even start: no file, no @inferlet
    |       |-- ManifestError    its [tool.pie] is wrong
    |       `-- BuildError       no component can be made of it
    |-- InferletError      the guest's: ends that instance; exit code 1
    |   |-- BadArgumentError, UnknownHandleError, LimitError
    |   |   `-- GrammarError   a grammar cannot be used; of BadArgumentError
    |   |-- OutOfPagesError, OutOfEmbedsError, BusyError
    |   |-- UnsupportedError, NotFoundError, CancelledError, StoppingError, TimedOutError
    |   |-- ForbiddenError     it lacks a grant
    |   |   `-- HttpDeniedError
    |   |-- HttpFailedError, StoreError
    |   |-- GuestFailedError   an exception of the author's own, with its traceback
    |   `-- GuestTrappedError  a trap of Wasm: stack, memory, unknown import
    `-- EngineError        ours: fails the calls of that batch
        |-- EngineLostError  its process has ended, and what it held is gone
        |-- ExportLostError  what an export held is gone, by that or with the server
        `-- ProcessorError   fails one call: nothing is left that could be sampled

A host call reports an :class:`InferletError` to the guest as the WIT record ``error``; its
``code`` is the class attribute of that name. Any other exception is never shown to a guest.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

__all__ = [
    "AdapterError",
    "BadArgumentError",
    "BuildError",
    "BusyError",
    "CacheError",
    "CancelledError",
    "ConfigError",
    "DamagedComponentError",
    "EngineError",
    "EngineLostError",
    "ExportLostError",
    "ForbiddenError",
    "GrammarError",
    "GuestFailedError",
    "GuestTrappedError",
    "HttpDeniedError",
    "HttpFailedError",
    "InferletError",
    "LimitError",
    "ManifestError",
    "ModelDirectoryError",
    "MustCollectError",
    "NotFoundError",
    "OutOfEmbedsError",
    "OutOfPagesError",
    "PieError",
    "ProcessorError",
    "ProgramError",
    "StoppingError",
    "StoreError",
    "TimedOutError",
    "UnknownHandleError",
    "UnsupportedError",
]


class PieError(Exception):
    """Everything that Pie raises on purpose."""


class ConfigError(PieError):
    """The operator's input cannot be used: a flag, a file, a directory."""


class ModelDirectoryError(ConfigError):
    """A model directory lacks a file, is damaged, or holds a model that Pie cannot run."""


class AdapterError(ConfigError):
    """An adapter cannot be loaded for this model, or cannot be dropped now."""


class CacheError(ConfigError):
    """The cache directory cannot be written, or other users could write to it."""


class DamagedComponentError(CacheError):
    """A file in the cache is no component of Wasm: it was cut short, or overwritten."""


class ProgramError(ConfigError):
    """A program cannot be launched: it is not there, not readable, or not an inferlet."""


class ManifestError(ProgramError):
    """What a program says of itself is wrong; the message names the key."""


class BuildError(ProgramError):
    """No component can be made of a program."""


class InferletError(PieError):
    """A fault of one inferlet: it ends that instance, or is raised in it, and nobody else."""

    code: ClassVar[str] = "internal"


class BadArgumentError(InferletError):
    """An argument of a launch or of a host call has the wrong type, size or value."""

    code = "invalid-argument"


class GrammarError(BadArgumentError):
    """A grammar is malformed, uses what is not supported, or takes more work than allowed.

    Attributes:
        rows: Of a batch of masks, the rows that could not be computed; else empty.
    """

    def __init__(self, message: str, *, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class UnknownHandleError(InferletError):
    """A handle is not in the instance's own table, or has been given back."""

    code = "unknown-handle"

    def __init__(self, kind: str, handle: int) -> None:
        super().__init__(
            f"{kind} {handle} is not a handle of this inferlet: "
            "allocate it first, and do not use it after it was given back"
        )
        self.kind, self.handle = kind, handle


class OutOfPagesError(InferletError):
    """A request needs more KV pages than are free."""

    code = "out-of-pages"

    def __init__(self, *, needed: int, free: int, total: int) -> None:
        super().__init__(
            f"need {needed} KV pages but only {free} of {total} are free: "
            "release a context, or start with more --kv-pages"
        )
        self.needed, self.free, self.total = needed, free, total


class OutOfEmbedsError(InferletError):
    """A request needs more places for hidden states than are free."""

    code = "out-of-embeds"

    def __init__(self, *, needed: int, free: int, total: int) -> None:
        super().__init__(
            f"need {needed} embeds but only {free} of {total} are free: give some back first"
        )
        self.needed, self.free, self.total = needed, free, total


class LimitError(InferletError):
    """An instance reached one of its limits."""

    code = "limit-exceeded"


class BusyError(InferletError):
    """Commands on their way use what a call would change."""

    code = "busy"


class UnsupportedError(InferletError):
    """The model lacks the trait that a call needs."""

    code = "unsupported"


class CancelledError(InferletError):
    """A command was withdrawn before it ran."""

    code = "cancelled"


class StoppingError(InferletError):
    """An instance is to end, and is told so in the place of a result it waits for."""

    code = "stopping"


class NotFoundError(InferletError):
    """There is nothing of that name, or not for this instance."""

    code = "not-found"


class TimedOutError(InferletError):
    """An instance used up its wall time."""

    code = "timed-out"


class GuestFailedError(InferletError):
    """The author's program raised; ``traceback`` shows the author's own lines.

    Attributes:
        kind: Name of the guest's exception type.
        traceback: As Python prints it, without the frames of the SDK.
    """

    def __init__(self, *, kind: str, message: str, traceback: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message, self.traceback = kind, message, traceback


class GuestTrappedError(InferletError):
    """The guest ended in a trap of Wasm, which has no traceback of Python."""


class EngineError(PieError):
    """A batch failed on the device: its calls fail, the server goes on."""

    code: ClassVar[str] = "engine-failed"


class MustCollectError(EngineError):
    """A step has to wait for one on its way, which is to be collected; nothing was submitted."""


class EngineLostError(EngineError):
    """The engine of a model has ended: what was on its way failed, what it held is gone."""

    code = "engine-lost"

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(
            f"the engine of {model} was lost ({reason}): pages, embeds and processors in its "
            "memory are gone, also exported ones; fill new contexts, and make processors again"
        )
        self.model, self.reason = model, reason

    def again(self) -> EngineLostError:
        """Return the same error for another to raise: one in two tasks mixes tracebacks up."""
        return EngineLostError(self.model, self.reason)


class ExportLostError(EngineError):
    """An export is known, but its pages went with an engine or a server that has ended."""

    code = "engine-lost"

    def __init__(
        self,
        reason: str,
        *,
        model: str,
        owner: str,
        name: str,
        num_pages: int,
        made_at: float,
    ) -> None:
        made = datetime.fromtimestamp(made_at, UTC)
        pages = f"its {num_pages} pages are" if num_pages > 1 else "its page is"
        super().__init__(
            f"the export {name!r} that {owner} made on {model} at {made:%Y-%m-%d %H:%M:%S} UTC "
            f"is empty: {pages} gone ({reason}). A program of {owner} has to export it again; "
            "what its metadata says is still there to look up"
        )
        self.reason, self.model, self.owner, self.name = reason, model, owner, name
        self.num_pages, self.made_at = num_pages, made_at


class ProcessorError(EngineError):
    """A processor leaves nothing to sample, or its grammar takes too much work.

    It is found in a batch, but is the guest's fault, and fails its request alone.
    """

    code = "invalid-argument"


class ForbiddenError(InferletError):
    """An instance asked for something that it was not granted; the message names the grant."""

    code = "forbidden"


class HttpDeniedError(ForbiddenError):
    """A request goes where the instance may not reach.

    Attributes:
        grant: What would allow it, as a value of ``--allow-http``; empty where nothing does.
    """

    def __init__(self, message: str, *, grant: str = "") -> None:
        super().__init__(message)
        self.grant = grant


class HttpFailedError(InferletError):
    """A request was allowed and brought no answer that can be used."""

    code = "failed"


class StoreError(InferletError):
    """The key-value store cannot do its work: its disk is full, it is locked, or damaged."""

    code = "failed"
