"""One native run of a program in a test: it has the caller's thread, trio another one."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio

import pie_trio
from inferlet_py._host import connect
from inferlet_py._models import forget_models
from inferlet_py._program import describe_failure, find_inferlet
from pie_trio.application.authoring.projects import Project
from pie_trio.application.authoring.testing.runs import (
    Outcome,
    collect,
    open_world,
)
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.recording.native_system import NativeSystem
from pie_trio.application.recording.taps import tap_interfaces
from pie_trio.application.run.command import LOCAL_GRANTS, run_trio
from pie_trio.application.run.native_host import make_native_host
from pie_trio.application.run.native_modules import importable
from pie_trio.errors import GuestFailedError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from inferlet_py._host import Host
    from pie_trio.application.authoring.testing.runs import Order
    from pie_trio.application.authoring.testing.virtual_clock import VirtualClock

__all__ = ["run_natively_in_test"]

HIDDEN_FOLDER = str(pie_trio.__path__[0])


class _ThreadTap:
    """Lets time and batches wait while the program computes, which trio cannot see.

    In Wasm the loop itself runs the program, so nothing else happens meanwhile.
    """

    def __init__(self, clock: VirtualClock, session: Session) -> None:
        self._clock, self._session = clock, session

    def is_for(self, host: Any) -> bool:
        return True

    def begin(
        self, name: str, arguments: Sequence[Any], *, may_fail: bool = False
    ) -> None:
        self._clock.release()

    def end(self, name: str, answer: Any) -> None:
        self._clock.hold()
        session = self._session
        for model in session.tenants:
            session.models[model].batcher.arrivals.expect(session.launch.instance_id)


def run_natively_in_test(
    order: Order, clock: VirtualClock | None, outcome: Outcome | None = None
) -> Outcome:
    """Run a program in this thread.

    Args:
        order: What is to be run.
        clock: Of its host; None for the machine's.
        outcome: Is filled; None for a new one.

    Raises:
        InferletError: It failed.
        ProgramError: It is a component.
    """
    project = order.found
    if not isinstance(project, Project):
        raise ProgramError(f"{order.path} is a component: mode must be 'wasm'")
    outcome = outcome or Outcome()
    service = _Service(order, project, clock, outcome)
    printed = sys.stderr if order.has_terminal else _Printed(outcome)
    with (
        importable(project, order.path) as load,
        service as host,
        contextlib.redirect_stdout(printed),
        _seeded(order),
    ):
        connect(host)
        try:
            encoded = _report(lambda: find_inferlet(load()).run(host))
        finally:
            connect(None)
            forget_models()
    outcome.result = json.loads(encoded)
    return outcome


@contextlib.contextmanager
def _seeded(order: Order) -> Generator[None]:
    """Begin random numbers where the order says, as the guest does when it starts."""
    if order.tap is None:
        random.seed(random.Random(order.seed).randbytes(16))
        yield
        return
    source = random.Random(order.seed)
    with NativeSystem(order.tap, source.randbytes).active():
        yield


def _report(action: Callable[[], str]) -> str:
    try:
        return action()
    except Exception as error:
        kind, message, text = describe_failure(error, hidden=[HIDDEN_FOLDER])
        raise GuestFailedError(kind=kind, message=message, traceback=text) from error


class _Printed(io.TextIOBase):
    """Takes what a program prints, line by line."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._rest = ""

    def write(self, text: str) -> int:
        """Take some text."""
        *lines, self._rest = (self._rest + text).split("\n")
        self._outcome.output += lines
        return len(text)


class _Service:
    """A session under trio in a thread of its own, for as long as the block is open."""

    def __init__(
        self,
        order: Order,
        project: Project,
        clock: VirtualClock | None,
        outcome: Outcome,
    ) -> None:
        self._order, self._project = order, project
        self._clock, self._outcome = clock, outcome
        self._ready = threading.Event()
        self._ended: trio.Event | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._host: Host | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pie-test", daemon=True)

    def __enter__(self) -> Host:
        self._thread.start()
        self._ready.wait()
        if self._host is None:
            self._finish()
        assert self._host is not None, "without a host the thread has failed"
        return self._host

    def __exit__(self, *_: object) -> None:
        assert self._token is not None, "set before the host"
        assert self._ended is not None, "set before the host"
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._ended.set)
        self._finish()

    def _finish(self) -> None:
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            if self._clock is None:
                run_trio(self._serve)
            else:
                trio.run(self._serve, clock=self._clock, instruments=[self._clock])
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        order, clock = self._order, self._clock
        self._token, self._ended = trio.lowlevel.current_trio_token(), trio.Event()
        log = InstanceLog(
            max_bytes=order.limits.log_bytes, on_line=self._outcome.note_line
        )
        http = order.manifest.grants.http if order.manifest.grants else ()
        launch = Launch(
            f"{self._project.program.name}-test",
            json.dumps(dict(order.arguments), ensure_ascii=False),
            grants=order.manifest.granted(replace(LOCAL_GRANTS, http=http)),
        )
        async with open_world(order) as services:
            session = Session(launch, services, order.limits, log)
            session.program = self._project.program
            if order.tap is not None:
                order.tap.host = session
            async with collect(session, order.messages, self._outcome):
                if clock is not None:
                    clock.hold()
                self._host = make_native_host(
                    session,
                    self._token,
                    adapt=lambda given: (
                        order.adapt(given)
                        if clock is None
                        else tap_interfaces(
                            order.adapt(given), _ThreadTap(clock, session)
                        )
                    ),
                )
                self._ready.set()
                try:
                    await self._ended.wait()
                finally:
                    if clock is not None:
                        clock.release()
                    session.log.close()
                    await session.close()
            self._outcome.note_models(services.models)
