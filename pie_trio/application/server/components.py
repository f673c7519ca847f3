"""The components among the programs of a server: compiled once each, beside all else.

wasmtime takes seconds for one. The result lies in the cache of compiled components, so after a
restart it is there in milliseconds; what is kept here is what to launch, and what went wrong.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from pie_trio.application.authoring.packing import load_packed
from pie_trio.application.lifecycle.instances import link_component
from pie_trio.application.lifecycle.programs import ComponentProgram
from pie_trio.errors import (
    BusyError,
    DamagedComponentError,
    GuestFailedError,
    PieError,
    ProgramError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from pie_trio.application.authoring.manifest import Manifest
    from pie_trio.application.background import Background
    from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime

__all__ = ["ComponentState", "Components", "ReadyComponent"]

ComponentState = Literal["compiling", "ready", "failed"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ReadyComponent:
    """A component that can be launched.

    Attributes:
        linked: Compiled, with its imports connected.
        manifest: What it says that it may do and use.
    """

    linked: LinkedComponent
    manifest: Manifest


@dataclass(slots=True)
class _Entry:
    """What is known of one.

    Attributes:
        ready: None before it is, and if it failed.
        error: Why it failed.
        is_done: Set when it is one or the other.
    """

    ready: ReadyComponent | None = None
    error: PieError | None = None
    is_done: trio.Event = field(default_factory=trio.Event)


class Components:
    """Compiles components in the background, one at a time.

    Args:
        background: Where that happens.
        wait_seconds: How long :meth:`get` waits.
    """

    def __init__(self, background: Background, *, wait_seconds: float) -> None:
        self._background, self._wait_seconds = background, wait_seconds
        self._entries: dict[str, _Entry] = {}
        self._limiter = trio.CapacityLimiter(1)
        self._runtime: WasmRuntime | None = None
        self._check: Callable[[ComponentProgram], Awaitable[object]] | None = None

    @property
    def num_compiling(self) -> int:
        """Components that are not ready yet, and have not failed."""
        return sum(not entry.is_done.is_set() for entry in self._entries.values())

    def open(
        self,
        runtime: WasmRuntime,
        check: Callable[[ComponentProgram], Awaitable[object]],
    ) -> None:
        """Begin to compile what is added.

        Args:
            runtime: Compiles, and keeps the result.
            check: Raises if one cannot be used.
        """
        self._runtime, self._check = runtime, check

    def add(self, sha256: str, path: Path) -> None:
        """Compile one unless that was done; once more if it failed.

        Args:
            sha256: Of the file.
            path: Of the file, which stays until the component is forgotten.
        """
        known = self._entries.get(sha256)
        if known is None or known.error is not None:
            entry = self._entries[sha256] = _Entry()
            self._background.start(lambda: self._prepare(sha256, path, entry))

    def forget(self, sha256: str) -> None:
        """Drop one; its instances run on."""
        self._entries.pop(sha256, None)

    def state(self, sha256: str) -> tuple[ComponentState, str]:
        """Return how far one is, and what went wrong."""
        entry = self._entries.get(sha256)
        if entry is None or not entry.is_done.is_set():
            return "compiling", ""
        return ("failed", str(entry.error)) if entry.error else ("ready", "")

    async def wait(self, sha256: str) -> None:
        """Wait until one is ready or has failed, but no longer than allowed."""
        if (entry := self._entries.get(sha256)) is not None:
            with trio.move_on_after(self._wait_seconds):
                await entry.is_done.wait()

    async def get(self, name: str, sha256: str) -> ReadyComponent:
        """Return one, once it is ready. Raises what :meth:`get_now` does."""
        await self.wait(sha256)
        return self.get_now(name, sha256)

    def get_now(self, name: str, sha256: str) -> ReadyComponent:
        """Return one that is ready.

        Raises:
            BusyError: It is being compiled.
            GuestFailedError: It raises before its main function.
            ProgramError: It cannot be used for another reason.
        """
        entry = self._entries.get(sha256)
        if entry is None or not entry.is_done.is_set():
            raise BusyError(
                f"{name} is being compiled: try again in a few seconds; "
                f"GET /v1/programs/{name} says how far it is"
            )
        match entry.error:
            case None:
                assert entry.ready is not None, "it is ready or has failed"
                return entry.ready
            case GuestFailedError() as error:
                raise GuestFailedError(
                    kind=error.kind, message=error.message, traceback=error.traceback
                )
            case error:
                raise ProgramError(f"{name} cannot be launched: {error}")

    async def _prepare(self, sha256: str, path: Path, entry: _Entry) -> None:
        assert self._runtime is not None, "opened before the first is added"
        assert self._check is not None, "opened before the first is added"
        runtime = self._runtime
        try:
            manifest = await trio.to_thread.run_sync(
                _compile,
                runtime,
                path,
                # A server that stops does not wait: the cache gets all of it or nothing.
                limiter=self._limiter,
                abandon_on_cancel=True,
            )
            linked = link_component(runtime, path)
            await self._check(ComponentProgram(sha256[:12], linked, sha256))
            entry.ready = ReadyComponent(linked, manifest)
        except PieError as error:
            entry.error = error
        except Exception:
            entry.error = ProgramError("the server failed; its log says why")
            logger.exception("the component %s failed", sha256)
        entry.is_done.set()


def _compile(runtime: WasmRuntime, path: Path) -> Manifest:
    """Compile a component into the cache, and return its manifest. Blocks for seconds.

    Raises:
        ProgramError: It cannot be compiled.
    """
    manifest = load_packed(path, "the component").manifest
    try:
        runtime.compile(path)
    except DamagedComponentError as error:
        why = str(error.__cause__).strip().splitlines()
        raise ProgramError(
            f"it is no component that can be compiled: {why[0] if why else error}: build it "
            "again"
        ) from error
    return manifest
