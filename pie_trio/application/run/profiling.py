"""``pie run --profile``: when guests, the host and engines had the processor; without a file, nothing.

Nothing is sampled: each poll of a guest, each host call in it, each turn of a task of the event loop and
each step of an engine is a frame. Those of the loop's thread lie inside of each other, so that the
own time of a guest is its code and the crossing of values, and that of a task is the host's.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import trio

from pie_trio.application.run.profile_tracks import Tracks
from pie_trio.application.run.reporting import check_output_path, write_output
from pie_trio.control.device_thread import open_device_thread
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from pie_trio.application.run.profile_tracks import Track
    from pie_trio.application.serving import LoadedEngine
    from pie_trio.application.wasm.linking import HostFunction, HostInterface
    from pie_trio.application.wasm.runtime import WasmRuntime
    from pie_trio.control.device_thread import Device
    from pie_trio.engine_api import Batch, BatchResult, Engine

__all__ = ["Profile"]

OPTION = "--profile"
WAITING, TASK, GUEST, CALL, ENGINE = "waiting", "task ", "guest ", "call ", "engine "
"""What the names of frames begin with."""


class Profile(trio.abc.Instrument):
    """A run's profile; in its block the run happens, and its end writes the file.

    Args:
        path: Of the file; None for no profile.

    Raises:
        ConfigError: It cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            check_output_path(path, OPTION)
        self._tracks: Tracks | None = None
        self._loop: Track | None = None
        self._loop_thread = 0
        self._devices: dict[int, Track] = {}
        self._num_steps = 0

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, _type: object, error: BaseException | None, _traceback: object
    ) -> None:
        if self._path is None or self._tracks is None or self._loop is None:
            return
        tracks, self._tracks = self._tracks, None
        tracks.end()
        text = json.dumps(tracks.speedscope(self._path.name))
        try:
            write_output(self._path, text, OPTION)
        except ConfigError as trouble:
            if error is None:
                raise
            sys.stderr.write(f"pie: {trouble}\n")
            return
        sys.stderr.write(f"{self._summarize(tracks, self._loop)}\n")

    # ---- what is put in between; before begin() it only hands on --------------------------

    def adapt(self, interfaces: list[HostInterface]) -> list[HostInterface]:
        """Put the profile between programs and the host."""
        if self._path is None:
            return interfaces
        return [self._timed_interface(interface) for interface in interfaces]

    def watch_guests(self, runtime: WasmRuntime) -> None:
        """Measure each poll of the guests of a runtime."""
        if self._path is None:
            return
        poll = runtime.poll

        def timed(future: Any) -> bool:
            assert runtime.current is not None, "the fiber that is polled"
            host = runtime.current.host
            name = host.launch.instance_id if host is not None else "made ahead"
            with_frame = self._open(f"{GUEST}{name}")
            try:
                return poll(future)
            finally:
                if with_frame:
                    self._close()

        runtime.poll = timed

    def watch_engines(self, engines: Sequence[LoadedEngine]) -> Sequence[LoadedEngine]:
        """Return engines whose steps are measured, where they are of this process."""
        if self._path is None:
            return engines
        return [
            replace(loaded, open_device=partial(_open_timed, self))
            if loaded.open_device is open_device_thread
            else loaded
            for loaded in engines
        ]

    def begin(self) -> None:
        """Begin, in the event loop."""
        if self._path is None:
            return
        self._tracks = Tracks(perf_counter)
        self._loop = self._tracks.add("event loop")
        self._loop_thread = threading.get_ident()
        trio.lowlevel.add_instrument(self)

    # ---- trio.abc.Instrument ----------------------------------------------------------

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """A task of the loop has its turn."""
        self._open(f"{TASK}{'.'.join(task.name.split('.')[-2:])}")

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Its turn is over. The first that is told so had it before the profile began."""
        if self._loop is not None and self._loop.opened:
            self._close()

    def before_io_wait(self, timeout: float) -> None:
        """The loop has nothing to do, or looks whether it has."""
        if timeout:
            self._open(WAITING)

    def after_io_wait(self, timeout: float) -> None:
        """It has something to do."""
        if timeout and self._loop is not None and self._loop.opened:
            self._close()

    # ---- inside -----------------------------------------------------------------------

    def run_step(self, execute: Callable[[], BatchResult], name: str) -> BatchResult:
        """Run a step of an engine, in the thread that this is."""
        tracks, thread = self._tracks, threading.get_ident()
        if tracks is None:
            return execute()
        track = self._loop
        if thread != self._loop_thread:
            track = self._devices.get(thread)
            if track is None:
                track = self._devices[thread] = tracks.add(f"thread of {name}")
        assert track is not None, "there is one of the loop since begin()"
        self._num_steps += 1
        is_open = tracks.open(track, name)
        try:
            return execute()
        finally:
            if is_open and track.opened:
                tracks.close(track)

    def _open(self, frame: str) -> bool:
        if self._tracks is None or self._loop is None:
            return False
        return self._tracks.open(self._loop, frame)

    def _close(self) -> None:
        if self._tracks is not None and self._loop is not None and self._loop.opened:
            self._tracks.close(self._loop)

    def _timed_interface(self, interface: HostInterface) -> HostInterface:
        def timed(name: str, function: HostFunction) -> HostFunction:
            call, frame = function.call, f"{CALL}{interface.short_name}.{name}"

            def measured(*args: Any) -> Any:
                is_open = self._open(frame)
                try:
                    return call(*args)
                finally:
                    if is_open:
                        self._close()

            return replace(function, call=measured)

        found = {name: timed(name, x) for name, x in interface.functions.items()}
        return replace(interface, functions=found)

    def _summarize(self, tracks: Tracks, loop: Track) -> str:
        own = tracks.own_seconds(loop)

        def total(*beginnings: str) -> float:
            return sum(t for name, t in own.items() if name.startswith(beginnings))

        beside = sum(
            sum(tracks.own_seconds(track).values()) for track in self._devices.values()
        )
        waiting = total(WAITING)
        parts = {
            "engine": total(ENGINE) + min(beside, waiting),
            "guests": total(GUEST),
            "host calls": total(CALL),
            "other tasks of the host": total(TASK),
            "waiting": max(waiting - beside, 0.0),
        }
        parts["the loop itself"] = max(tracks.seconds - sum(parts.values()), 0.0)
        whole = tracks.seconds or 1.0
        text = ", ".join(f"{n} {s / whole:.0%}" for n, s in parts.items())
        steps = f", {self._num_steps} steps" if self._num_steps else ""
        full = " (of its beginning alone: it has got too long)" if tracks.is_cut else ""
        return (
            f"profile of {tracks.seconds:.3g} s{steps}{full} in {self._path}: {text}. "
            "Open it on https://www.speedscope.app"
        )


class _TimedEngine:
    """An engine whose steps are measured, each on its own."""

    is_pipelined = False

    def __init__(self, engine: Engine, profile: Profile) -> None:
        self._engine, self._profile = engine, profile

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def execute(self, batch: Batch) -> BatchResult:
        """Run one step."""
        name = f"{ENGINE}{self._engine.info.name}"
        return self._profile.run_step(partial(self._engine.execute, batch), name)


def _open_timed(
    profile: Profile, engine: Engine
) -> AbstractAsyncContextManager[Device]:
    return open_device_thread(cast("Engine", _TimedEngine(engine, profile)))
