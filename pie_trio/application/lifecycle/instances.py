"""Instances: launch a program as a guest, run it to its end, give everything back."""

from __future__ import annotations

import itertools
import json
import os
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import asynccontextmanager, contextmanager
from time import thread_time
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.computing import Account, Accounts
from pie_trio.application.host.instance_log import InstanceLog, LogLine
from pie_trio.application.host.interfaces import (
    API_VERSION,
    FAILURE,
    make_interfaces,
    make_source_interface,
)
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.lifecycle.background import BackgroundShare
from pie_trio.application.lifecycle.programs import ComponentProgram, SourceProgram
from pie_trio.application.services import Grants
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.fiber import Fiber
from pie_trio.application.wasm.linking import PARKED, HostInterface
from pie_trio.application.wasm.values import STRING, List, Result, ResultValue
from pie_trio.config import ControlConfig
from pie_trio.errors import (
    BadArgumentError,
    GuestFailedError,
    LimitError,
    NotFoundError,
    TimedOutError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
    from pathlib import Path

    from pie_trio.application.host.trees import Tree
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.services import Services
    from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
    from pie_trio.config import InstanceLimits
    from pie_trio.control.quotas import KeyLimits

__all__ = ["Instance", "Launcher", "link_component", "link_language", "open_launcher"]

PROGRAM_INTERFACE = f"pie:inferlet/program@{API_VERSION}"
COMPILER_INTERFACE = f"pie:inferlet/compiler@{API_VERSION}"
EXPORTS = {
    "compile": (COMPILER_INTERFACE, Result(List(STRING), FAILURE)),
    "describe": (PROGRAM_INTERFACE, Result(STRING, FAILURE)),
    "run": (PROGRAM_INTERFACE, Result(STRING, FAILURE)),
}
COMPILE = "compile"
MAX_COMPILED_PROGRAMS = 256
MAX_COMPILED_BYTES = 256 << 20
"""Of their code: a program may have megabytes of it."""
MAX_FAILURE_CHARACTERS = 64 << 10
"""Of the traceback, and of the message, of a program that has raised."""
CANCELLED_KIND = "Cancelled"
"""What a program fails with that has ended since it was cancelled; see ``tickets.wit``."""
REFILL_DELAY_SECONDS = 0.05
"""Making a guest ahead of time must not compete with the launch that took one, nor with those
right behind it, of which so many are waited for at most:"""
MAX_REFILL_DELAYS = 10
CONTENTION_MEMORY_SECONDS = 0.25
"""The device counts as at work for so long after its last step."""


class _UnclaimedHost:
    """The host object of a guest that waits for its program. It has no timers and no log."""

    def has_program(self) -> bool:
        return False

    def get_program(self) -> Waiting:
        return Waiting(PARKED)

    def write_output(self, stream: int, data: bytes) -> None:
        return

    def drop_resource(self, number: int) -> None:
        return


class _GuestHost(Session):
    """The host object of a guest that runs a program."""

    def __init__(
        self,
        program: Program,
        code: Sequence[str],
        launch: Launch,
        services: Services,
        limits: InstanceLimits,
        log: InstanceLog,
    ) -> None:
        super().__init__(launch, services, limits, log)
        self.program, self.code = program, code
        self.is_admitted = False

    def has_program(self) -> bool:
        return True

    def get_program(self) -> tuple[str, list[tuple[str, str, str]]]:
        source = self.program
        assert isinstance(source, SourceProgram), "only the language component asks"
        codes = self.code or [""] * len(source.modules)
        modules = zip(source.modules.items(), codes, strict=True)
        return source.entry, [(path, text, code) for (path, text), code in modules]


class _End:
    """Ends a run from outside.

    Attributes:
        reason: Why it was ended, if it was.
    """

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.reason: Exception | None = None

    def give(self, reason: Exception) -> None:
        """End it; the first reason counts."""
        if self.reason is None:
            self.reason = reason
        self.scope.cancel()

    def allow(self, seconds: float) -> None:
        """Let it end by itself for so long, or for as long as it had anyway."""
        latest = trio.current_time() + seconds
        self.scope.deadline = min(self.scope.deadline, latest)


class _Observer:
    """Tells the control layer what a fiber is doing, and charges what it computes."""

    def __init__(
        self, session: Session, account: Account, background: BackgroundShare
    ) -> None:
        self._session, self._background = session, background
        self._account = account
        self._num_steps = 0

    @property
    def is_held(self) -> bool:
        return self._account.is_overdrawn

    def ran(self, seconds: float) -> None:
        num_steps = self._session.num_steps
        if num_steps != self._num_steps:
            self._account.earn(num_steps - self._num_steps)
            self._num_steps = num_steps
        self._account.charge(seconds)

    def count_steps(self) -> None:
        """Count what the device has done, or is to do, since the guest ran last."""
        if self._session.has_work or self._session.num_steps != self._num_steps:
            self._account.earn(self._session.num_steps - self._num_steps)
            self._num_steps = self._session.num_steps

    def blocked(self) -> None:
        self._session.settle()

    async def slice_over(self) -> None:
        self._session.settle()
        await self._background.wait_turn(self._account)


class Instance:
    """One run of a program.

    Attributes:
        session: Its tables, its outbox and its log.
    """

    def __init__(self, launcher: Launcher, session: _GuestHost) -> None:
        self.session = session
        self._launcher = launcher

    @property
    def instance_id(self) -> str:
        """Its name."""
        return self.session.launch.instance_id

    def admit(self) -> None:
        """Count it for its owner now, so that :meth:`run` cannot fail for want of a place.

        Whoever calls this has to call :meth:`run`, which gives the place back.

        Raises:
            LimitError: The owner, or the key that launches it, has as many as allowed.
        """
        self._launcher.admit(self.session)

    async def run(self) -> str:
        """Run the program to its end and return its result as JSON.

        Everything that the instance held is given back before this returns, however it ends.

        Raises:
            GuestFailedError: The program raised.
            GuestTrappedError: The guest trapped.
            LimitError: There are as many instances as there may be.
            TimedOutError: It ran longer than its limit.
            Exception: The reason with which it was stopped, unless it returned or raised
                something of its own all the same.
        """
        result: str = await self._launcher.run(self.session, "run")
        most = self.session.limits.max_unread_bytes
        if len(result) > most:
            raise LimitError(
                f"the program returned {len(result)} characters as JSON, but {most} are the "
                "limit: send it in parts"
            )
        return result

    async def describe(self) -> dict[str, Any]:
        """Run the program's description instead: name, documentation, schema of its arguments.

        Raises:
            GuestFailedError: The program cannot be loaded.
        """
        description: dict[str, Any] = json.loads(
            await self._launcher.run(self.session, "describe")
        )
        return description


class Launcher:
    """Launches instances. Made by :func:`open_launcher`.

    Attributes:
        num_running: Instances that have not ended.
        max_instances: Most of them at once.
    """

    def __init__(
        self,
        language: LinkedComponent,
        services: Services,
        limits: InstanceLimits,
        max_instances: int,
    ) -> None:
        self.services, self.limits = services, limits
        self.models = services.models
        self.max_instances = max_instances
        self.num_running = 0
        self._language = language
        self._code: dict[str, Sequence[str]] = {}  # by digest of the program
        self._code_bytes = 0
        self._warm: deque[Fiber] = deque()
        self._taken = trio.Event()
        self._num_launched = 0
        self._numbers = itertools.count(1)
        self._prefix = secrets.token_hex(3)
        config = language.runtime.config
        self._accounts = Accounts(config.background_share)
        self._background = BackgroundShare(
            share=config.background_share,
            is_contended=self._is_contended,
            count_steps=self._count_steps,
        )
        self._observers: dict[_Observer, None] = {}

    @property
    def runtime(self) -> WasmRuntime:
        """Compiles and runs everything."""
        return self._language.runtime

    def prepare(
        self,
        program: Program,
        arguments: Mapping[str, Any],
        *,
        on_log: Callable[[LogLine], None] | None = None,
        owner: str = "local",
        grants: Grants | None = None,
        depth: int = 0,
        limits: InstanceLimits | None = None,
        key: KeyLimits | None = None,
        tree: Tree | None = None,
    ) -> Instance:
        """Return a new instance that has not started.

        Args:
            program: What it runs.
            arguments: By name.
            on_log: Is told each line that it logs or prints.
            owner: On whose behalf it runs.
            grants: What it may do; nothing beyond its sandbox without.
            depth: How many inferlets stand above it.
            limits: What it may use; None for the launcher's limits.
            key: Limits of the key that it is launched with, if it has some.
            tree: With which instances it is charged; None where it has no parent.

        Raises:
            BadArgumentError: The arguments are nothing that JSON can carry.
        """
        try:
            encoded = json.dumps(dict(arguments), ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise BadArgumentError(f"arguments must be JSON values: {error}") from error
        launch = Launch(
            f"{program.name}-{self._prefix}{next(self._numbers)}",
            encoded,
            owner,
            grants or Grants(),
            depth,
            key,
            tree,
        )
        limits = limits or self.limits
        log = InstanceLog(max_bytes=limits.log_bytes, on_line=on_log)
        code = self._code.get(program.digest, ())
        host = _GuestHost(program, code, launch, self.services, limits, log)
        host.spawner = self
        return Instance(self, host)

    async def prepare_child(
        self, parent: Session, program: str, arguments: Mapping[str, Any]
    ) -> Instance:
        """Return an instance on behalf of a parent; see :class:`Spawner`."""
        source = self._find_program(parent, program)
        self._check_room()
        await self.compile(source)
        self._check_room()
        child = self.prepare(
            source,
            arguments,
            on_log=parent.log.on_line,
            owner=parent.launch.owner,
            grants=parent.launch.grants,
            depth=parent.launch.depth + 1,
            limits=parent.limits,
            key=parent.launch.key,
            tree=parent.tree,
        )
        try:
            child.admit()  # so that it is the launch which fails, and not the run
        except LimitError:
            await child.session.close()
            raise
        return child

    def _find_program(self, parent: Session, name: str) -> Program:
        programs = self.services.programs_of(parent.launch.owner)
        found = programs.get(name) if name else parent.program
        if found is None:
            known = ", ".join(programs) or "none but the inferlet's own"
            raise NotFoundError(
                f"there is no program {name!r} to launch: the server knows {known}"
            )
        return found

    async def compile(self, program: Program) -> None:
        """Compile a program, so that its instances need not. Runs none of its code.

        Raises:
            GuestFailedError: It has a syntax error.
        """
        if isinstance(program, ComponentProgram) or program.digest in self._code:
            return
        instance = self.prepare(program, {})
        code = await self.run(instance.session, COMPILE)
        if program.digest in self._code:
            return  # another one has compiled it meanwhile
        self._code[program.digest] = code
        self._code_bytes += _size_of(self._code[program.digest])
        while (
            len(self._code) > MAX_COMPILED_PROGRAMS
            or self._code_bytes > MAX_COMPILED_BYTES
        ):
            oldest = self._code.pop(next(iter(self._code)))
            self._code_bytes -= _size_of(oldest)

    async def run(self, session: _GuestHost, export: str) -> Any:
        """Run one of the program's exports in a guest of its own; see :class:`Instance`."""
        try:
            self._check_room()
            if export != COMPILE:  # that runs nothing of the program's
                self.admit(session)
        except LimitError:
            await session.close()
            raise
        self.num_running += 1
        self._num_launched += 1
        end = _End()
        observer: _Observer | None = None
        tree = session.tree
        if tree.account is None:
            tree.account = self._accounts.open(session.launch.owner)
        else:
            tree.account.add_child()
        account = tree.account
        try:
            with self._guest(export, session, account) as fiber:
                fiber.host = session
                observer = _Observer(session, account, self._background)
                fiber.observer = observer
                self._observers[observer] = None
                session.on_ended = end.give
                end.scope.deadline = trio.current_time() + (
                    session.limits.wall_seconds or float("inf")
                )
                session.on_stop = lambda: end.allow(session.limits.grace_seconds)
                if session.stop_reason is not None:
                    session.on_stop()
                with end.scope:
                    return await self._run_fiber(fiber, export)
            assert end.scope.cancelled_caught, (
                "the block is left by returning, by its deadline, or from outside"
            )
            if reason := end.reason or session.stop_reason:
                raise reason
            raise TimedOutError(
                f"the program ran for {session.limits.wall_seconds:g} s, which is its limit"
            )
        except GuestFailedError as error:
            if session.stop_reason is not None and error.kind == CANCELLED_KIND:
                raise session.stop_reason from None
            raise
        finally:
            if observer is not None:
                del self._observers[observer]
            self.num_running -= 1
            if session.is_admitted:
                session.share.give("instances")
            session.log.close()
            await session.close()

    def admit(self, session: _GuestHost) -> None:
        """Count an instance for its owner; again does nothing. Its run gives the place back."""
        if not session.is_admitted:
            session.share.check("instances", 1)
            session.share.take("instances")
            session.is_admitted = True

    def _check_room(self) -> None:
        """Raise if there are as many instances as there may be."""
        if self.num_running >= self.max_instances:
            raise LimitError(
                f"{self.num_running} inferlets are running, which is as many as there may be: "
                "try again when one has ended"
            )

    async def _run_fiber(self, fiber: Fiber, export: str) -> Any:
        interface, result = EXPORTS[export]
        if not fiber.is_started:
            await fiber.instantiate()
            fiber.start(interface, export)
        outcome: ResultValue[Any] = await fiber.finish(result)
        if outcome.is_ok:
            return outcome.value
        kind, message, traceback = outcome.value
        raise GuestFailedError(
            kind=kind[:MAX_FAILURE_CHARACTERS],
            message=message[:MAX_FAILURE_CHARACTERS],
            traceback=traceback[-MAX_FAILURE_CHARACTERS:],
        )

    @contextmanager
    def _guest(
        self, export: str, session: _GuestHost, account: Account
    ) -> Generator[Fiber]:
        """Lend a guest. To make one and to drop one is charged, as what it computes is."""
        started = thread_time()
        fiber = self._take_guest(export, session)
        account.charge(thread_time() - started)
        try:
            yield fiber
        finally:
            started = thread_time()
            fiber.close()
            account.charge(thread_time() - started)

    def _take_guest(self, export: str, session: _GuestHost) -> Fiber:
        """Return a guest that is ready for its program, or a new one."""
        memory_bytes = session.limits.memory_bytes
        if isinstance(session.program, ComponentProgram):
            return self._make_guest(session.program.linked, memory_bytes)
        has_usual_memory = memory_bytes == self.limits.memory_bytes
        if export == "run" and self._warm and has_usual_memory:
            self._taken.set()
            return self._warm.popleft()
        return self._make_guest(self._language, memory_bytes)

    def _make_guest(self, linked: LinkedComponent, memory_bytes: int) -> Fiber:
        return Fiber(linked, _UnclaimedHost(), memory_bytes=memory_bytes)

    async def keep_warm(self, count: int) -> None:
        """Replace guests that were taken, once the rush is over, until cancelled."""
        while True:
            self._taken = trio.Event()
            await self.warm_up(count)
            await self._taken.wait()
            for _ in range(MAX_REFILL_DELAYS):
                num_launched = self._num_launched
                await trio.sleep(REFILL_DELAY_SECONDS)
                if self._num_launched == num_launched:
                    break

    async def warm_up(self, count: int) -> None:
        """Instantiate guests ahead of time, up to ``count``, so that a launch need not."""
        while len(self._warm) < count:
            fiber = self._make_guest(self._language, self.limits.memory_bytes)
            try:
                await fiber.instantiate()
                fiber.start(PROGRAM_INTERFACE, "run")
                is_parked = await fiber.park()
                assert is_parked, (
                    "a guest asks for its program before it does anything else"
                )
            except BaseException:
                fiber.close()
                raise
            self._warm.append(fiber)

    def close(self) -> None:
        """Drop the guests that wait for a program."""
        while self._warm:
            self._warm.popleft().close()

    def _count_steps(self) -> None:
        for observer in self._observers:
            observer.count_steps()

    def _is_contended(self) -> bool:
        """Say whether anybody but the one guest that asks is at work."""
        if self.num_running < 2:
            return False
        since = trio.current_time() - CONTENTION_MEMORY_SECONDS
        return any(
            replica.batcher.num_unfinished or replica.batcher.last_step_at > since
            for model in self.models.values()
            for replica in model.replicas
        )


def _size_of(code: Sequence[str]) -> int:
    return sum(map(len, code))


Adapt = Callable[[list[HostInterface]], list[HostInterface]]


def _unchanged(interfaces: list[HostInterface]) -> list[HostInterface]:
    return interfaces


def link_language(
    runtime: WasmRuntime,
    path: Path,
    *,
    adapt: Adapt = _unchanged,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> LinkedComponent:
    """Load the language component and connect it with the host's side of the WIT.

    Milliseconds if it is in the cache, seconds if it must be compiled first.

    Args:
        runtime: Compiles it.
        path: Of the component.
        adapt: May put something between programs and the host, WASI too.
        random_bytes: Where random numbers come from.
    """
    source = make_source_interface(
        lambda host: host.has_program(), lambda host: host.get_program()
    )
    interfaces = [*adapt(make_interfaces()), source]
    compiled = runtime.compile(path)
    return runtime.link(compiled, interfaces, random_bytes=random_bytes, adapt=adapt)


def link_component(
    runtime: WasmRuntime,
    path: Path,
    *,
    adapt: Adapt = _unchanged,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> LinkedComponent:
    """Load the component of one program and connect it, as :func:`link_language` does."""
    interfaces, compiled = adapt(make_interfaces()), runtime.compile(path)
    return runtime.link(compiled, interfaces, random_bytes=random_bytes, adapt=adapt)


@asynccontextmanager
async def open_launcher(
    language: LinkedComponent,
    services: Services,
    limits: InstanceLimits,
    *,
    num_warm: int = 0,
    max_instances: int | None = None,
) -> AsyncGenerator[Launcher]:
    """Launch programs for as long as the block is open.

    Args:
        language: The language component, which runs what is sent as source. Where all programs
            are components of their own, one of these.
        services: What the programs share.
        limits: Of each instance.
        num_warm: Guests to keep instantiated ahead of time.
        max_instances: Most instances at once; None for the default.
    """
    most = ControlConfig().max_instances if max_instances is None else max_instances
    launcher = Launcher(language, services, limits, most)
    try:
        await launcher.warm_up(num_warm)
        async with trio.open_nursery() as nursery:
            if num_warm:
                nursery.start_soon(launcher.keep_warm, num_warm)
            yield launcher
            nursery.cancel_scope.cancel()
    finally:
        launcher.close()
