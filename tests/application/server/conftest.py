"""A whole server over a fake engine, on a real socket in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.server.app import make_server_app
from pie_trio.application.server.inspecting import Inspector
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.metrics import ServerMetrics
from pie_trio.application.server.owners import LOCAL, Owner
from pie_trio.application.server.program_store import ProgramStore, open_program_store
from pie_trio.application.server.registry import InstanceRegistry, open_registry
from pie_trio.application.server.state import ServerState
from tests.application.server.clients import Api
from tests.application.web.servers import Running, running

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.web.shell import ShellConfig
    from tests.application.conftest import OpenLauncher


@dataclass(frozen=True)
class Served:
    """A server and what is in it."""

    api: Api
    web: Running
    launcher: Launcher
    programs: ProgramStore
    registry: InstanceRegistry
    owner: Owner = LOCAL


OpenServer = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def open_server(open_fake: OpenLauncher, tmp_path: Path) -> OpenServer:
    """Opens servers; at the end of each, all pages are free.

    Programs that come with them are those in the folder ``built_in`` of the test.
    """

    @asynccontextmanager
    async def open_it(
        *,
        limits: ServerLimits | None = None,
        shell: ShellConfig | None = None,
        **launcher_options: Any,
    ) -> AsyncGenerator[Served]:
        limits = limits or ServerLimits()
        async with (
            open_program_store(
                tmp_path / "data", limits=limits, built_in=tmp_path / "built_in"
            ) as programs,
            open_fake(
                services={"programs": programs.sources(LOCAL)}, **launcher_options
            ) as launcher,
            open_registry(launcher, limits=limits) as registry,
        ):
            metrics = ServerMetrics(launcher.models)
            registry.on_launched = metrics.count_launch
            registry.on_ended = metrics.count_end
            inspector = Inspector(launcher, seconds=limits.inspect_seconds)
            app = make_server_app(
                ServerState(launcher.models, programs, inspector, registry, metrics)
            )
            async with running(app, shell) as web:
                yield Served(Api(web.port), web, launcher, programs, registry)

    return open_it
