"""A whole server over a fake engine, on a real socket in the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.server.app import make_server_app
from pie_trio.application.server.inspecting import Inspector
from pie_trio.application.server.keys import KeyRing, make_key
from pie_trio.application.server.keys_tables import open_key_tables
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.metrics import ServerMetrics
from pie_trio.application.server.owners import LOCAL, Gate, Owner
from pie_trio.application.server.program_store import ProgramStore, open_program_store
from pie_trio.application.server.registry import InstanceRegistry, open_registry
from pie_trio.application.server.state import ServerState
from pie_trio.application.web.shell import ShellConfig
from tests.application.server.clients import Api
from tests.application.web.servers import Running, running

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.server.keys import Scope
    from pie_trio.application.services import Grants
    from pie_trio.application.web import WebApp
    from pie_trio.control.quotas import Quotas
    from tests.application.conftest import OpenLauncher


@dataclass(frozen=True)
class Served:
    """A server and what is in it."""

    api: Api
    web: Running
    launcher: Launcher
    programs: ProgramStore
    registry: InstanceRegistry
    app: WebApp
    gate: Gate
    data: Path
    owner: Owner = LOCAL

    def make_key(self, user: str, *scopes: Scope, **limits: int) -> str:
        """Make a key as ``pie keys`` does, from beside the server."""
        chosen: Sequence[Scope] = scopes or ("launch", "upload")
        key, text = make_key(user, chosen, limits=limits, created_at=0.0)
        with open_key_tables(self.data) as tables:
            tables.add(key)
        return text

    def revoke(self, text: str) -> None:
        """Revoke a key from beside the server."""
        with open_key_tables(self.data) as tables:
            assert tables.remove(text.split("_")[1])

    def user(self, name: str, *scopes: Scope, **limits: int) -> Api:
        """Return the server for a user with a new key."""
        return self.api.with_key(self.make_key(name, *scopes, **limits))


PATIENCE_SECONDS = 120.0

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
        on_app: Callable[[Any], None] = lambda _: None,
        has_keys: bool = False,
        names: Collection[str] | None = None,
        grants: Grants | None = None,
        quotas: Quotas | None = None,
        **launcher_options: Any,
    ) -> AsyncGenerator[Served]:
        # A machine that stalls is no reason to refuse.
        limits = limits or ServerLimits(
            inspect_seconds=PATIENCE_SECONDS, lease_seconds=PATIENCE_SECONDS
        )
        shell = shell or ShellConfig(header_seconds=PATIENCE_SECONDS)
        async with (
            open_program_store(
                tmp_path / "data", limits=limits, built_in=tmp_path / "built_in"
            ) as programs,
            open_fake(
                services={
                    "programs_of": lambda name: programs.sources(Owner(name)),
                    "quotas": quotas,
                },
                **launcher_options,
            ) as launcher,
            open_registry(launcher, limits=limits, grants=grants) as registry,
            AsyncExitStack() as opened,
        ):
            tables = (
                opened.enter_context(open_key_tables(tmp_path / "data"))
                if has_keys
                else None
            )
            gate = Gate(KeyRing(tables) if tables else None, names=names)
            metrics = ServerMetrics(launcher.models)
            registry.on_launched = metrics.count_launch
            registry.on_ended = metrics.count_end
            inspector = Inspector(launcher, seconds=limits.inspect_seconds)
            app = make_server_app(
                ServerState(
                    launcher.models, programs, inspector, registry, metrics, gate
                )
            )
            on_app(app)
            async with running(app, shell) as web:
                yield Served(
                    *(Api(web.port), web, launcher, programs, registry),
                    app=app,
                    gate=gate,
                    data=tmp_path / "data",
                )

    return open_it
