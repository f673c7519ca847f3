"""What all connections of one server share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from pie_trio.application.web.shell.hangups import Hangups
from pie_trio.application.web.shell.request_task import MAX_QUEUED_EVENTS

if TYPE_CHECKING:
    from hypercorn.typing import ASGIFramework

    from pie_trio.application.web.shell.config import ShellConfig

__all__ = ["Shared"]


class _NoLog:
    """In place of Hypercorn's logger: the shell logs by itself, each request once."""

    def __init__(self, _config: Config) -> None:
        pass

    async def access(self, *_: Any) -> None:
        """Do nothing."""


class Shared:
    """What all connections of one server share.

    Attributes:
        app: What is served.
        config: Limits and times.
        hypercorn: The settings of Hypercorn's protocol classes that follow from them.
        context: Says to them that the server drains.
        draining: Set when the server begins to stop; handlers may wait for it.
        hangups: Tells when clients leave.
    """

    def __init__(self, app: ASGIFramework, config: ShellConfig) -> None:
        self.app = ASGIWrapper(app)
        self.config = config
        self.hypercorn = _hypercorn_config(config)
        self.context = WorkerContext(None)
        self.draining = trio.Event()
        self.hangups = Hangups()

    @property
    def is_draining(self) -> bool:
        """Whether the server stops."""
        return self.draining.is_set()

    async def drain(self) -> None:
        """Say that the server stops."""
        self.draining.set()
        await self.context.terminated.set()


def _hypercorn_config(config: ShellConfig) -> Config:
    hypercorn = Config()
    hypercorn.logger_class = _NoLog  # type: ignore[assignment]  # it needs no more
    hypercorn.include_server_header = False
    # Framing has checked the size before h11 sees anything.
    hypercorn.h11_max_incomplete_size = 2 * config.max_head_bytes
    hypercorn.keep_alive_max_requests = 1 << 62
    hypercorn.max_app_queue_size = MAX_QUEUED_EVENTS
    hypercorn.websocket_max_message_size = config.max_message_bytes
    hypercorn.websocket_ping_interval = config.ping_seconds
    return hypercorn
