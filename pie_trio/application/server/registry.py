"""All instances that clients have launched: those that run, and for a while those that ended."""

from __future__ import annotations

import json
import logging
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.authoring.manifest import Manifest
from pie_trio.application.background import open_background
from pie_trio.application.server.events import EventLog
from pie_trio.application.server.failures import DrainingError
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.manifests import grants_on_server
from pie_trio.application.server.running import NOT_FETCHED, RunningInstance
from pie_trio.application.server.server_log import note_instance
from pie_trio.application.services import Grants
from pie_trio.errors import GuestFailedError, LimitError, NotFoundError, PieError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Mapping

    from pie_trio.application.background import Background
    from pie_trio.application.lifecycle.instances import Instance, Launcher
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.server.owners import Owner

__all__ = ["InstanceRegistry", "error_fields", "open_registry"]

KILL_SECONDS = 5.0
"""For instances that were cancelled to give everything back."""

logger = logging.getLogger(__name__)


class InstanceRegistry:
    """Launches instances and knows them by id. Made by :func:`open_registry`.

    Attributes:
        launcher: Of all of them.
        limits: Of their events.
        is_draining: Nothing is launched any more.
        on_launched: Told each instance that was launched.
        on_ended: Told each instance that has ended, and with which error, if any.
    """

    def __init__(
        self,
        launcher: Launcher,
        background: Background,
        *,
        limits: ServerLimits,
        grants: Grants,
        trusted: Collection[str],
    ) -> None:
        self.launcher, self.limits = launcher, limits
        self.is_draining = False
        self.on_launched: Callable[[RunningInstance], None] = lambda _: None
        self.on_ended: Callable[[RunningInstance, Exception | None], None] = (
            lambda _instance, _error: None
        )
        self._background, self._grants, self._trusted = background, grants, trusted
        self._instances: dict[str, RunningInstance] = {}
        self._running: dict[str, RunningInstance] = {}
        self._ended: deque[RunningInstance] = deque()
        self._changed = trio.Event()

    @property
    def num_running(self) -> int:
        """Instances that have not told their end."""
        return len(self._running)

    async def launch(
        self,
        program: Program,
        arguments: Mapping[str, Any],
        *,
        owner: Owner,
        manifest: Manifest | None = None,
        is_detached: bool = False,
    ) -> RunningInstance:
        """Launch a program.

        Unless it is detached, somebody has to attach to it soon: see
        :meth:`RunningInstance.attach`.

        Args:
            program: What it runs.
            arguments: By name.
            owner: On whose behalf.
            manifest: What the program says that it may do and use; it does not get more than
                the server has for all.
            is_detached: It outlives the client.

        Raises:
            BadArgumentError: The arguments are nothing that JSON can carry.
            DrainingError: The server stops.
            GuestFailedError: The program has a syntax error.
            LimitError: There are as many instances as there may be.
        """
        self._check_room()
        await self.launcher.compile(program)
        self._check_room()  # others may have come meanwhile
        instance: RunningInstance | None = None
        launched = self.launcher.prepare(
            program,
            arguments,
            on_log=lambda line: instance.add_line(line) if instance else None,
            owner=owner.name,
            grants=grants_on_server(
                manifest or Manifest(),
                self._grants,
                is_trusted=program.digest in self._trusted,
            ),
            limits=manifest.limits.below(self.launcher.limits) if manifest else None,
            key=owner.key,
        )
        try:
            launched.admit()
        except LimitError:
            await launched.session.close()
            raise
        events = EventLog(
            max_events=self.limits.max_events, max_bytes=self.limits.max_event_bytes
        )
        instance = RunningInstance(
            launched.session, program.name, owner, events, is_detached=is_detached
        )
        events.append("started", {"id": instance.instance_id, "program": program.name})
        launched.session.on_receive = instance.note_receiving
        self._instances[instance.instance_id] = instance
        self._running[instance.instance_id] = instance
        self.on_launched(instance)
        self._background.start(lambda: self._run(launched, instance))
        return instance

    def get(self, instance_id: str, *, owner: Owner) -> RunningInstance:
        """Return an instance of an owner; an admin's are all.

        Raises:
            NotFoundError: There is none, or it ended some time ago.
        """
        self._forget()
        instance = self._instances.get(instance_id)
        if instance is None or not (instance.owner == owner or owner.is_admin):
            raise NotFoundError(
                f"there is no instance {instance_id!r}: those that ended are kept for "
                f"{self.limits.ended_seconds:g} s, as long as there is room"
            )
        return instance

    def list(self, *, owner: Owner) -> list[RunningInstance]:
        """Return the instances of an owner, oldest first; an admin's are all."""
        self._forget()
        return [
            found
            for found in self._instances.values()
            if found.owner == owner or owner.is_admin
        ]

    async def drain(self, grace_seconds: float) -> None:
        """Launch nothing more, let instances end, and end those that have not in time.

        Returns:
            When all have ended, and their clients have taken their last messages; or soon
            after the time is over.
        """
        self.is_draining = True
        with trio.move_on_after(grace_seconds):
            await self._wait_all_ended()
        for instance in list(self._running.values()):
            instance.cancel("the server stops")
            instance.events.let_go()
        with trio.move_on_after(KILL_SECONDS):
            await self._wait_all_ended()

    async def _wait_all_ended(self) -> None:
        while self._running:
            self._changed = trio.Event()
            await self._changed.wait()

    def _check_room(self) -> None:
        if self.is_draining:
            raise DrainingError
        most = self.launcher.max_instances
        if max(len(self._running), self.launcher.num_running) >= most:
            raise LimitError(
                f"{len(self._running)} instances are running, which is as many as there may "
                "be: try again when one has ended"
            )

    async def _run(self, launched: Instance, instance: RunningInstance) -> None:
        error: Exception | None = None
        result: str | None = None
        note_instance(instance.instance_id)
        try:
            async with trio.open_nursery() as leasing:
                if not instance.is_detached:
                    leasing.start_soon(self._expire, instance)
                # Also once it has ended somebody has to take its messages, or to be given up.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(instance.pump)
                    error, result = await self._run_to_end(launched, instance)
                leasing.cancel_scope.cancel()
            instance.is_attached.set()  # nobody has to come any more
            # The messages come first: all of them are events now.
            if error is not None:
                instance.events.append("error", error_fields(error))
            else:
                instance.events.append(
                    "result", {"value": json.loads(result or "null")}
                )
        finally:
            if instance.ended_clock is None:  # the server is cancelled
                instance.finish_running("cancelled")
            instance.finish()
            del self._running[instance.instance_id]
            self._ended.append(instance)
            self._changed.set()
            self.on_ended(instance, error)
            self._forget()

    async def _run_to_end(
        self, launched: Instance, instance: RunningInstance
    ) -> tuple[Exception | None, str | None]:
        """Run an instance, note how it has ended, and return its error or its result."""
        error: Exception | None = None
        result: str | None = None
        with instance.scope:
            try:
                result = await launched.run()
            except PieError as failure:
                error = failure
            except Exception as failure:
                logger.exception("%s failed", instance.instance_id)
                error = failure
        if instance.end_reason is not None and result is None and error is None:
            error = instance.end_reason
        was_ended = error is not None and error is instance.end_reason
        instance.finish_running(
            "cancelled" if was_ended else "failed" if error else "succeeded"
        )
        return error, result

    async def _expire(self, instance: RunningInstance) -> None:
        """Cancel an instance whose client left before it could listen."""
        with trio.move_on_after(self.limits.lease_seconds):
            await instance.is_attached.wait()
            return
        instance.cancel(NOT_FETCHED)
        instance.events.let_go()

    def _forget(self) -> None:
        """Forget instances that ended long ago, and the oldest where they are too many."""
        limits, oldest = self.limits, trio.current_time() - self.limits.ended_seconds
        num_bytes = sum(found.events.num_bytes for found in self._ended)
        while self._ended and (
            len(self._ended) > limits.max_ended
            or num_bytes > limits.max_ended_bytes
            or (self._ended[0].ended_clock or 0.0) < oldest
        ):
            gone = self._ended.popleft()
            num_bytes -= gone.events.num_bytes
            del self._instances[gone.instance_id]


def error_fields(error: Exception) -> dict[str, Any]:
    """Return what a client is told of an error; nothing of those that are ours."""
    if isinstance(error, GuestFailedError):
        return {
            "code": "program-failed",
            "kind": error.kind,
            "message": error.message,
            "traceback": error.traceback,
        }
    if isinstance(error, PieError):
        return {"code": getattr(error, "code", "internal"), "message": str(error)}
    return {"code": "internal", "message": "the server failed; its log says why"}


@asynccontextmanager
async def open_registry(
    launcher: Launcher,
    *,
    limits: ServerLimits | None = None,
    grants: Grants | None = None,
    trusted: Collection[str] = (),
) -> AsyncGenerator[InstanceRegistry]:
    """Launch instances for as long as the block is open; those that are left are ended.

    Args:
        launcher: Stays open longer.
        limits: None for the defaults.
        grants: What instances may do; nothing beyond their sandbox without.
        trusted: Digests of programs that get what they ask for: those that come with Pie.
    """
    async with open_background() as background:
        yield InstanceRegistry(
            launcher,
            background,
            limits=limits or ServerLimits(),
            grants=grants or Grants(),
            trusted=trusted,
        )
