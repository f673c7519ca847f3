"""A server for whole guests, in virtual time: its disk, its engine and its log are the simulation's."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.lifecycle.instances import (
    Launcher,
    link_language,
    open_launcher,
)
from pie_trio.application.lifecycle.programs import SourceProgram
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.registry import InstanceRegistry, open_registry
from pie_trio.application.services import Services, open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
from pie_trio.config import ControlConfig, InstanceLimits, WasmConfig
from pie_trio.control.topics import Topics
from pie_trio.inference.fake import FakeTokenizer
from tests.application.host.clients import PAGE_SIZE
from tests.chaos.determinism import SeededBytes
from tests.chaos.device import ChaosDevice, ChaosDevices, ChaosEngine

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator

    from pie_trio.control.outbox import Message
    from pie_trio.control.served_model import ServedModel

FOLDER = Path(__file__).parent / "programs"
ROOT = "tests/chaos/programs"
NAMES = sorted(file.stem for file in FOLDER.glob("*.py"))
HELPERS = ("__init__", "reporting")
MAX_INSTANCES = 64


@dataclass(frozen=True)
class GuestSetting:
    """What the server is like.

    Attributes:
        num_warm: Guests that are made ahead of time.
        max_unread: Messages in a box of an instance, and in a mailbox.
    """

    policy: str = "adaptive"
    contention: str = "ladder"
    num_pages: int = 400
    swap_bytes: int = 1 << 30
    num_warm: int = 0
    max_unread: int = 3

    @property
    def is_short(self) -> bool:
        """Whether pages run out, so that inferlets may be ended for that."""
        return self.num_pages < 400


def load_programs() -> dict[str, SourceProgram]:
    """Return what instances run, by name."""
    texts = {n: (FOLDER / f"{n}.py").read_text() for n in NAMES}
    helper = {f"{ROOT}/reporting.py": texts["reporting"]}
    return {
        name: SourceProgram(
            name,
            f"{ROOT}/{name}.py",
            {f"{ROOT}/{name}.py": text, **helper},
            sha256(f"{text}{helper}".encode()).hexdigest(),
        )
        for name, text in texts.items()
        if name not in HELPERS
    }


@dataclass(frozen=True)
class Language:
    """What runs programs, and where their random numbers come from."""

    linked: LinkedComponent
    random_bytes: SeededBytes


@contextmanager
def open_language() -> Generator[Language]:
    """Compile the language component unless that was done, and link it."""
    config, random_bytes = WasmConfig(), SeededBytes()
    path = prepare_language(config)
    with WasmRuntime(config, CompileCache(config.cache_directory)) as runtime:
        runtime.slice_ticks = 1 << 20  # how busy the machine is must not matter
        yield Language(
            link_language(runtime, path, random_bytes=random_bytes), random_bytes
        )


class Disk:
    """Where the store is: its writes fail when they are told to.

    Attributes:
        num_failing: Of the next statements that write.
        num_failed: So far.
    """

    def __init__(self) -> None:
        self.num_failing = self.num_failed = 0
        self._connect: Any = sqlite3.connect

    def connect(self, *args: Any, **details: Any) -> sqlite3.Connection:
        """As ``sqlite3.connect``."""
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *given: Any) -> sqlite3.Cursor:
                disk.check(sql)
                return super().execute(sql, *given)

        connection: sqlite3.Connection = self._connect(
            *args, **details, factory=Connection
        )
        return connection

    def check(self, sql: str) -> None:
        """Raise where a statement is to fail."""
        if self.num_failing and sql.startswith(("COMMIT", "INSERT", "BEGIN IMM")):
            self.num_failing -= 1
            self.num_failed += 1
            error = sqlite3.OperationalError("disk I/O error, as it was told to")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error


class NotedTopics(Topics):
    """Keeps what was broadcast.

    Attributes:
        log: Sender and message of each, by the full name of the topic.
    """

    log: dict[str, list[tuple[str, Message]]]

    def broadcast(
        self, topic: str, message: Message, *, owner: str, sender: str
    ) -> int:
        self.log.setdefault(f"{owner}/{topic}", []).append((sender, message))
        return super().broadcast(topic, message, owner=owner, sender=sender)


class ErrorLog(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = logging.Formatter("%(name)s: %(message)s").format(record)
        self.lines.append(text)


@dataclass(frozen=True)
class World:
    """A server and what can be done to it from below."""

    setting: GuestSetting
    model: ServedModel
    engine: ChaosEngine
    device: ChaosDevice
    disk: Disk
    topics: NotedTopics
    services: Services
    launcher: Launcher
    registry: InstanceRegistry
    programs: dict[str, SourceProgram]


@asynccontextmanager
async def open_world(
    setting: GuestSetting, language: Language
) -> AsyncGenerator[World]:
    """Serve for as long as the block is open; at its end nothing may be held any more."""
    control = ControlConfig(
        goes_ahead=True,
        policy=setting.policy,
        contention=setting.contention,
        swap_bytes=setting.swap_bytes,
        inline_seconds=0.0,
        max_batch_tokens=8,
    )
    limits = InstanceLimits(
        max_unread=setting.max_unread, max_in_flight=64, grace_seconds=1.0
    )
    engine = ChaosEngine(num_pages=setting.num_pages, page_size=PAGE_SIZE)
    devices, disk, programs = ChaosDevices(), Disk(), load_programs()
    topics = NotedTopics(max_unread=setting.max_unread, max_bytes=1000, max_mailboxes=8)
    topics.log = {}
    loaded = LoadedEngine(engine, FakeTokenizer(), devices.open)
    async with AsyncExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sqlite3, "connect", disk.connect)
        models = await stack.enter_async_context(open_models([loaded], control, limits))
        services = await stack.enter_async_context(
            open_services(models, programs=programs)
        )
        services = replace(services, topics=topics)
        launcher = await stack.enter_async_context(
            open_launcher(
                language.linked,
                services,
                limits,
                num_warm=setting.num_warm,
                max_instances=MAX_INSTANCES,
            )
        )
        launcher._prefix = "n"  # else it is drawn anew for each server
        registry = await stack.enter_async_context(
            open_registry(
                launcher, limits=ServerLimits(max_events=5, lease_seconds=1.0)
            )
        )
        yield World(
            *(setting, models["fake"], engine, devices.device, disk, topics, services),
            *(launcher, registry, programs),
        )
