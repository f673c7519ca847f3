"""A server over a fake engine, guests that make calls on it, and what must hold when they have ended."""

from __future__ import annotations

import itertools
import json
import logging
import traceback
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.lifecycle.instances import open_launcher
from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.run.native_host import make_native_module
from pie_trio.application.run.native_values import NativeTypes, python_name
from pie_trio.application.services import Grants, Outgoing, open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import (
    CancelledError,
    GuestFailedError,
    GuestTrappedError,
    InferletError,
)
from pie_trio.inference.fake import FakeEngine, FakeTokenizer, fake_continuation
from tests.application.conftest import program_of
from tests.application.host.clients import Rig, assert_is_closed
from tests.application.outgoing.servers import NO_TLS, Reply, open_server
from tests.control.engines import Gate
from tests.fuzz import guest as guest_module
from tests.fuzz.calls import Call, read_calls
from tests.fuzz.idioms import idioms

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.wasm.runtime import LinkedComponent
    from tests.fuzz.watch import Watch

TEXT = Path(guest_module.__file__).read_text()
GUEST = SourceProgram("fuzz", "app.py", {"app.py": TEXT}, "fuzz")
CHILD = program_of("await send('here')\nreturn await receive()")
WELL_BEHAVED = program_of(
    "async with Context() as context:\n"
    "    await context.fill('ab')\n"
    "    return await context.generate(max_tokens=8, stop_tokens=[]).tokens()"
)
TIME_LIMIT_SECONDS = 60.0
IDLE_SECONDS, GRACE_SECONDS = 0.02, 0.1
NUM_IDLE = 4
"""A guest that has made no call for so many times ``IDLE_SECONDS`` is told to end."""
CALLS_OF_PRELUDE = 30
"""After so many calls that gave things back, most of the others would find nothing."""
FIRST_IDIOM = b"\xe8"
"""A piece that begins with this or more stands for an idiom."""
LIMITS = InstanceLimits(
    wall_seconds=5.0,
    grace_seconds=GRACE_SECONDS,
    max_in_flight=40,
    max_command_bytes=1 << 20,
    max_queues=5,
    max_pages=40,
    max_embeds=20,
    max_processors=4,
    max_processor_bytes=100_000,
    max_unread=6,
    max_unread_bytes=2000,
    max_request_bytes=1 << 17,
    max_children=2,
    max_depth=2,
    max_descendants=4,
    max_launches=20,
    max_tokens=4000,
    max_http_requests=20,
    log_bytes=2000,
)
GRANTS = (
    Grants(logits=True, publish=True, topics=True, http=("local://web.test:*",)),
    Grants(spawn=False),
)
# What an instance may end with, beside returning.
ENDS = (InferletError, GuestFailedError, GuestTrappedError)


@dataclass(frozen=True)
class Plan:
    """A guest.

    Attributes:
        pieces: A call each: see :mod:`tests.fuzz.calls`.
        rounds: How many times the calls are made.
        end: What happens then, as ``tests.fuzz.guest`` knows it.
        stop_at: The call before which it is told to end; 0 for none.
        drop_at: The call before which it is dropped where it stands; 0 for none.
        is_native: It runs natively.
        has_grants: It may do what grants are for.
        then: Calls after those of the pieces.
    """

    pieces: tuple[bytes, ...]
    rounds: int = 1
    end: str = "return"
    stop_at: int = 0
    drop_at: int = 0
    is_native: bool = False
    has_grants: bool = True
    then: tuple[Call, ...] = ()

    def __str__(self) -> str:
        how = {**self.__dict__, "pieces": len(self.pieces), "then": len(self.then)}
        head = ", ".join(f"{name}={value!r}" for name, value in how.items())
        calls = "".join(f"\n  {call}" for call in self.calls())
        return f"guest({head}):{calls}"

    def calls(self) -> list[Call]:
        """Return the calls that the pieces stand for, and what makes most of them possible."""
        calls: list[Call] = []
        for number, piece in enumerate(self.pieces):
            if number % CALLS_OF_PRELUDE == 0:
                calls += idioms()[0]
            if piece[:1] >= FIRST_IDIOM:
                calls += idioms()[piece[-1] % len(idioms())]
            else:
                calls += read_calls([piece])
        return [*calls, *self.then]

    def text(self, port: int) -> str:
        """Return what the guest reads."""
        calls = [call.for_guest() for call in self.calls()]
        plan = json.dumps({"rounds": self.rounds, "calls": calls})
        return plan.replace("web.test", f"web.test:{port}")


class ErrorLog(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def __enter__(self) -> ErrorLog:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self)


class Fuzzed:
    """A server whose guests may do anything."""

    def __init__(self, launcher: Launcher, rig: Rig, watch: Watch, port: int) -> None:
        self._launcher, self._rig, self._watch, self._port = launcher, rig, watch, port
        self._sessions: list[Session] = []
        self._num_native = 0

    async def run(self, plans: Sequence[Plan]) -> None:
        """Run guests at the same time, and check what must hold when all have ended."""
        with trio.fail_after(TIME_LIMIT_SECONDS), ErrorLog() as log:
            async with trio.open_nursery() as nursery:
                for plan in plans:
                    run = self._run_natively if plan.is_native else self._run_guest
                    nursery.start_soon(run, plan)
            await self._check(log)

    def _watch_session(self, session: Session, plan: Plan, drop: Any) -> None:
        self._sessions.append(session)
        seen = self._watch.of(session)
        seen.is_native = plan.is_native
        if plan.stop_at:
            stop = CancelledError("it was told to")
            seen.at_call = plan.stop_at, lambda: session.stop(stop)
        elif plan.drop_at and not plan.is_native:
            seen.at_call = plan.drop_at, drop

    async def _run_guest(self, plan: Plan) -> None:
        arguments = {"plan": plan.text(self._port), "end": plan.end}
        instance = self._launcher.prepare(
            GUEST, arguments, owner="ann", grants=GRANTS[not plan.has_grants]
        )
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            self._watch_session(instance.session, plan, scope.cancel)
            nursery.start_soon(self._be_client, instance.session)
            nursery.start_soon(self._stop_if_idle, instance.session)
            try:
                result = json.loads(await instance.run())
            except ENDS as error:
                self._check_end(plan, error)
            else:
                self._check_strange(result)
            scope.cancel()

    async def _run_natively(self, plan: Plan) -> None:
        self._num_native += 1
        log = InstanceLog(max_bytes=1000)
        name = f"native-{self._num_native}"
        launch = Launch(name, "{}", "ann", GRANTS[not plan.has_grants])
        session = Session(launch, self._launcher.services, LIMITS, log)
        session.program, session.spawner = GUEST, self._launcher
        self._watch_session(session, plan, lambda: None)
        token = trio.lowlevel.current_trio_token()
        modules = make_modules(self._watch, session, token)
        text = plan.text(self._port)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._be_client, session)
                self._check_strange(
                    await trio.to_thread.run_sync(guest_module.run_plan, modules, text)
                )
                nursery.cancel_scope.cancel()
        finally:
            log.close()
            await session.close()

    async def _be_client(self, session: Session) -> None:
        """Take what it sends, and send it something now and then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_all, session)
            for number in range(3):
                if not await session.inbox.put(f"message {number}"):
                    break

    async def _read_all(self, session: Session) -> None:
        while await session.outbox.take():
            pass

    async def _stop_if_idle(self, session: Session) -> None:
        seen, before, num_idle = self._watch.of(session), -1, 0
        while True:
            await trio.sleep(IDLE_SECONDS)
            num_idle = num_idle + 1 if seen.num_calls == before else 0
            before = seen.num_calls
            if num_idle >= NUM_IDLE and before:
                session.stop(CancelledError("it made no call for a while"))

    def _check_strange(self, result: Any) -> None:
        strange = result.get("strange") if result else None
        assert not strange, f"what no call may end with: {strange}"

    def _check_end(self, plan: Plan, error: Exception) -> None:
        if isinstance(error, GuestFailedError):
            kinds = {"raise": ("ValueError",), "recurse": ("RecursionError",)}
            wanted = (*kinds.get(plan.end, ()), "MemoryError")
            assert error.kind in wanted, f"{error.kind}: {error}\n{error.traceback}"
        if isinstance(error, GuestTrappedError):
            assert plan.end in ("exit", "recurse"), f"it trapped: {error}"

    async def _check(self, log: ErrorLog) -> None:
        result = json.loads(await self._launcher.prepare(WELL_BEHAVED, {}).run())
        assert result == fake_continuation([256, *b"ab"], 8), "others are harmed"
        assert not self._watch.bugs, "\n".join(self._watch.bugs[:3])
        assert self._launcher.num_running == 0
        for session in self._sessions:
            assert_is_closed(session)
        self._sessions.clear()
        self._watch.forget()
        self._rig.check_all_free()
        services = self._rig.services
        assert len(services.topics) == 0, "a subscription is left"
        assert not log.lines, "\n".join(log.lines)


def make_modules(watch: Watch, session: Session, token: Any) -> dict[str, Any]:
    """Return what a native guest calls, by the names of Python."""
    interfaces = watch.adapt(make_interfaces())
    types = {n: codec for found in interfaces for n, codec in found.types.items()}
    shared = NativeTypes(types)
    return {
        python_name(found.short_name): make_native_module(found, session, token, shared)
        for found in interfaces
    }


async def _look_up(_host: str, _port: int) -> Sequence[str]:
    return ["127.0.0.1"]


@asynccontextmanager
async def open_fuzzed(
    language: LinkedComponent, watch: Watch
) -> AsyncGenerator[Fuzzed]:
    """Serve; the language component was linked with what ``watch`` adapts."""
    engine = FakeEngine(num_pages=16, page_size=4, num_embeds=16, adapters=["lora"])
    loaded = LoadedEngine(engine, FakeTokenizer())
    control = ControlConfig(max_batch_tokens=16, max_forward_tokens=64)
    outgoing = Outgoing(lookup=_look_up, make_ssl_context=lambda: NO_TLS)
    programs = {"child": CHILD}
    async with (
        open_server(lambda _: Reply(body=b"x" * 100)) as web,
        open_models([loaded], control, LIMITS) as models,
        open_services(models, outgoing=outgoing, programs=programs) as services,
        open_launcher(language, services, LIMITS) as launcher,
    ):
        rig = Rig([engine], services, LIMITS, Gate(is_open=True))
        yield Fuzzed(launcher, rig, watch, web.port)


def run_guests(
    language: LinkedComponent, watch: Watch, groups: Sequence[Sequence[Plan]]
) -> None:
    """Run groups of guests, one group after the other, on a new server.

    Raises:
        AssertionError: With all calls, if something does not hold.
    """

    async def run() -> None:
        async with open_fuzzed(language, watch) as fuzzed:
            for group in groups:
                await fuzzed.run(group)

    watch.forget()
    try:
        trio.run(run)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        plans = "\n".join(str(plan) for group in groups for plan in group)
        shown = "".join(traceback.format_exception(error, chain=False)[-3:])
        raise AssertionError(f"{shown}{plans}") from error


def shrink(
    language: LinkedComponent,
    watch: Watch,
    groups: Sequence[Sequence[Plan]],
    failure: AssertionError,
    *,
    max_runs: int = 60,
) -> AssertionError:
    """Return what fewer guests with fewer calls fail with, as far as they are found.

    Args:
        language: As for :func:`run_guests`.
        watch: The same.
        groups: They failed.
        failure: With this.
        max_runs: So many parts of them are tried.
    """
    plans = [plan for group in groups for plan in group]
    runs = itertools.count(1)

    def still_fails(fewer: Sequence[Plan]) -> bool:
        nonlocal failure
        if next(runs) > max_runs:
            return False
        try:
            run_guests(language, watch, [fewer])
        except AssertionError as error:
            failure = error
            return True
        return False

    for plan in list(plans):
        fewer = [other for other in plans if other is not plan]
        if fewer and still_fails(fewer):
            plans = fewer
    for index, plan in enumerate(plans):
        if plan.rounds > 1 and still_fails(
            [*plans[:index], once := replace(plan, rounds=1), *plans[index + 1 :]]
        ):
            plan = plans[index] = once
        size = len(plan.pieces) // 2
        while size:
            start = 0
            while start < len(plan.pieces):
                pieces = plan.pieces[:start] + plan.pieces[start + size :]
                shorter = replace(plan, pieces=pieces)
                if still_fails([*plans[:index], shorter, *plans[index + 1 :]]):
                    plan = plans[index] = shorter
                else:
                    start += size
            size //= 2
    return failure
