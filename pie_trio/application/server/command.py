"""``pie serve``: open everything, serve until a signal, drain, and close everything."""

from __future__ import annotations

import gc
import os
import shlex
import signal
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import trio

from pie_trio._version import __version__
from pie_trio.application.lifecycle.instances import link_language, open_launcher
from pie_trio.application.outgoing import parse_grant
from pie_trio.application.run.command import load_engines, run_trio
from pie_trio.application.run.setup import prepare_language
from pie_trio.application.run.signals import Interrupted
from pie_trio.application.server.app import make_server_app
from pie_trio.application.server.inspecting import Inspector
from pie_trio.application.server.keys import KeyRing
from pie_trio.application.server.keys_tables import open_key_tables
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.metrics import ServerMetrics
from pie_trio.application.server.observing import observe_instances
from pie_trio.application.server.owners import (
    Gate,
    Owner,
    asks_for_keys,
    is_loopback,
)
from pie_trio.application.server.preparing import compile_built_in
from pie_trio.application.server.program_files import lock_data_directory
from pie_trio.application.server.program_store import open_program_store
from pie_trio.application.server.registry import open_registry
from pie_trio.application.server.server_log import LogFormat, open_server_log, say
from pie_trio.application.server.state import ServerState
from pie_trio.application.server.telemetry import open_telemetry
from pie_trio.application.services import Grants, open_services
from pie_trio.application.serving import open_models
from pie_trio.application.wasm.compile_cache import CompileCache
from pie_trio.application.wasm.runtime import WasmRuntime
from pie_trio.application.web.shell import (
    ShellConfig,
    TcpAddress,
    TlsFiles,
    UnixAddress,
    load_tls,
    open_listeners,
    parse_address,
    serve,
)
from pie_trio.config import SERVER_LIMITS, OfferedGrants, SharedLimits
from pie_trio.control.export_register import open_export_register
from pie_trio.control.export_tables import EXPORTS_FILE
from pie_trio.control.quotas import Quotas
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
    from pathlib import Path

    from pie_trio.application.run.signals import Signals
    from pie_trio.application.server.registry import InstanceRegistry
    from pie_trio.application.serving import LoadedEngine
    from pie_trio.application.wasm.runtime import LinkedComponent
    from pie_trio.application.web.shell import Address
    from pie_trio.config import ControlConfig, InstanceLimits, ModelConfig, WasmConfig
    from pie_trio.control.served_model import ServedModel

__all__ = ["ServeOptions", "make_addresses", "run_server"]

HOST, PORT = "127.0.0.1", 8000
NUMBERS = (signal.SIGINT, signal.SIGTERM)
AFTER_GRACE_SECONDS = 2.0
"""For clients to take the last events."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What ``pie serve`` was asked for.

    Attributes:
        addresses: Where to listen.
        choose_models: Finds the models; the first is the default.
        data_directory: Of the programs, and of what is known of persistent exports.
        store_path: Of the key-value store of inferlets.
        wasm: The sandbox.
        control: Of each model.
        limits: Of each instance.
        num_warm: Guests to keep instantiated ahead of time.
        allow_http: Hosts that programs may reach.
        grace_seconds: For instances to end when the server stops.
        server_limits: Of programs and events.
        shell: Limits and times of connections.
        is_url_printed: The URLs are printed on stdout.
        engine: Where steps are computed: a process for each model, or a thread of this one.
        keys: Whether requests need one; ``auto`` where others than this machine reach it.
        names: Under which it is reached, besides addresses and names without a dot.
        user_limits: Of all instances of a user.
        shared_limits: Of all instances of the server.
        log_format: Of the lines on stderr.
        log_level: The lowest that is written.
        offered_grants: What programs are given that ask for it; None for what suits the keys.
        tls: What it proves its name with on TCP; None to speak HTTP there.
    """

    addresses: Sequence[Address]
    choose_models: Callable[[], Sequence[ModelConfig]]
    data_directory: Path
    store_path: Path
    wasm: WasmConfig
    control: ControlConfig
    limits: InstanceLimits
    num_warm: int = 0
    allow_http: Sequence[str] = ()
    grace_seconds: float = 10.0
    server_limits: ServerLimits = field(default_factory=ServerLimits)
    shell: ShellConfig = field(default_factory=ShellConfig)
    is_url_printed: bool = False
    engine: Literal["process", "thread"] = "process"
    keys: Literal["auto", "on", "off"] = "auto"
    names: Sequence[str] = ()
    user_limits: SharedLimits = field(default_factory=SharedLimits)
    shared_limits: SharedLimits = SERVER_LIMITS
    log_format: LogFormat = "text"
    log_level: str = "warning"
    offered_grants: OfferedGrants | None = None
    tls: TlsFiles | None = None

    @property
    def hosts(self) -> list[str]:
        """On which it listens; none for a unix socket."""
        return [a.host for a in self.addresses if isinstance(a, TcpAddress)]

    @property
    def is_public(self) -> bool:
        """Others than this machine reach it."""
        return not all(map(is_loopback, self.hosts))

    @property
    def needs_keys(self) -> bool:
        """Requests need a key."""
        return asks_for_keys(self.keys, self.hosts)

    @property
    def grants(self) -> Grants:
        """What programs may do at most."""
        offered = self.offered_grants
        if offered is None:
            offered = OfferedGrants.by_default(has_keys=self.needs_keys)
        return Grants(**asdict(offered), http=tuple(self.allow_http))


def make_addresses(
    host: str | None, port: int | None, uds: Path | None
) -> list[Address]:
    """Return where to listen: on TCP unless only a unix socket was asked for.

    Raises:
        ConfigError: The host or the port is none.
    """
    addresses: list[Address] = [] if uds is None else [UnixAddress(uds)]
    if uds is None or host is not None or port is not None:
        name = host or HOST
        bracketed = f"[{name}]" if ":" in name and not name.startswith("[") else name
        addresses.append(parse_address(f"{bracketed}:{PORT if port is None else port}"))
    return addresses


def run_server(options: ServeOptions, signals: Signals) -> None:
    """Serve until the first signal, and then until everything has ended.

    Raises:
        PieError: Something is wrong with a model, an address or a directory.
        Interrupted: By a signal before it served, or by a second one.
    """
    for text in options.allow_http:
        parse_grant(text)
    # Before what takes long: whether it could serve at all.
    tls = None if options.tls is None else load_tls(options.tls)
    models = options.choose_models()
    with lock_data_directory(options.data_directory):
        run_trio(_try_to_listen, options)
        if options.needs_keys:
            _check_keys(options)
    with signals.phase():
        path = prepare_language(options.wasm)
    with WasmRuntime(
        options.wasm, CompileCache(options.wasm.cache_directory)
    ) as runtime:
        language = link_language(runtime, path)
        with load_engines(models, options.engine, default_kv_bytes=None) as engines:
            signals.check()
            gc.collect()
            gc.freeze()  # what is there now stays: collections need not look at it again
            log = open_server_log(options.log_format, options.log_level)
            with signals.left_to_trio(), log:
                run_trio(_serve, language, options, tls, engines, signals)


def _check_keys(options: ServeOptions) -> None:
    """Refuse to serve the world while nobody could use it but who finds a hole."""
    with open_key_tables(options.data_directory) as tables:
        if options.is_public and not tables.all():
            where = shlex.quote(str(options.data_directory))
            raise ConfigError(
                "others than this machine reach this address, so requests need a key, and "
                f"there is none yet: make one with `pie keys add NAME --data-dir {where}`, or "
                "let everybody in with --keys off"
            )


async def _try_to_listen(options: ServeOptions) -> None:
    async with open_listeners(options.addresses):
        pass


async def _serve(
    language: LinkedComponent,
    options: ServeOptions,
    tls: ssl.SSLContext | None,
    engines: Sequence[LoadedEngine],
    signals: Signals,
) -> None:
    shell = replace(
        options.shell, drain_seconds=options.grace_seconds + AFTER_GRACE_SECONDS
    )
    with (
        trio.open_signal_receiver(*NUMBERS) as received,
        _open_gate(options) as gate,
        open_telemetry(os.environ) as telemetry,
    ):
        signals.check()  # it may have come before the receiver was there
        async with (
            open_program_store(
                options.data_directory, limits=options.server_limits
            ) as programs,
            open_export_register(options.data_directory / EXPORTS_FILE) as register,
            open_models(
                engines, options.control, options.limits, register=register
            ) as models,
            open_services(
                models,
                store_path=options.store_path,
                programs_of=lambda owner: programs.sources(Owner(owner)),
                quotas=Quotas(options.shared_limits, options.user_limits),
            ) as services,
            open_launcher(
                language,
                services,
                options.limits,
                num_warm=options.num_warm,
                max_instances=options.control.max_instances,
            ) as launcher,
            open_registry(
                launcher,
                limits=options.server_limits,
                grants=options.grants,
                trusted={program.source.digest for program in programs.built_in},
            ) as registry,
            open_listeners(options.addresses, tls) as listeners,
            trio.open_nursery() as nursery,
        ):
            metrics = ServerMetrics(models)
            observe_instances(registry, metrics, telemetry)
            seconds = options.server_limits.inspect_seconds
            inspector = Inspector(launcher, seconds=seconds)
            app = make_server_app(
                ServerState(models, programs, inspector, registry, metrics, gate)
            )
            if telemetry is not None:
                telemetry.watch(app)
            stop, served = trio.Event(), trio.Event()
            nursery.start_soon(metrics.watch_traces)
            nursery.start_soon(compile_built_in, launcher, programs)

            async def serve_connections(
                *, task_status: trio.TaskStatus[list[str]]
            ) -> None:
                await serve(
                    app, listeners, shell, shutdown=stop, task_status=task_status
                )
                served.set()

            urls = await nursery.start(serve_connections)
            is_readable = options.is_public and tls is None and options.needs_keys
            _print_banner(models, urls, gate, is_readable=is_readable)
            if options.is_url_printed:
                print(*urls, sep="\n", flush=True)  # noqa: T201 - it is the result
            number = await anext(received)
            nursery.start_soon(_end_at_once, received)
            _tell_stopping(number, registry, options.grace_seconds)
            stop.set()
            await registry.drain(options.grace_seconds)
            await served.wait()
            nursery.cancel_scope.cancel()


async def _end_at_once(received: AsyncIterator[int]) -> None:
    raise Interrupted(await anext(received))


@contextmanager
def _open_gate(options: ServeOptions) -> Generator[Gate]:
    """Offer what finds out who sends a request."""
    if options.needs_keys:
        with open_key_tables(options.data_directory) as tables:
            yield Gate(KeyRing(tables))
    else:
        # Who listens to the world without keys has a guard of their own in front.
        names = None if options.is_public else {*options.hosts, *options.names}
        yield Gate(names=names)


def _print_banner(
    models: Mapping[str, ServedModel],
    urls: Sequence[str],
    gate: Gate,
    *,
    is_readable: bool,
) -> None:
    lines = [f"Pie {__version__} serves"]
    for name, model in models.items():
        info = model.info
        size = f", {info.num_pages * info.page_bytes / (1 << 20):.0f} MiB"
        times = (
            f", on each of {count} replicas"
            if (count := len(model.replicas)) > 1
            else ""
        )
        lines.append(
            f"  {name} ({info.architecture}): {info.num_pages} KV pages of "
            f"{info.page_size} tokens{size if info.page_bytes else ''}{times}"
        )
    lines.append(f"on {', '.join(urls)}; {_about_keys(gate)}")
    if is_readable:
        lines.append("keys can be read on their way here: see --tls-cert")
    say("\n".join(lines))


def _about_keys(gate: Gate) -> str:
    if gate.keys is None:
        return "keys are off: whoever reaches it may use it"
    count = len(gate.keys)
    if not count:
        return "keys are on, and there is none yet: pie keys add NAME"
    return f"keys are on: {count} {'is' if count == 1 else 'are'} known"


def _tell_stopping(
    number: int, registry: InstanceRegistry, grace_seconds: float
) -> None:
    count = registry.num_running
    rest = f": {count} running have {grace_seconds:g} s to end" if count else ""
    name = signal.Signals(number).name
    say(f"pie: {name}, stopping{rest}")
