"""``pie serve``: programs over HTTP and WebSocket."""

from __future__ import annotations

import argparse
import copy
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.cli.options import (
    add_adapter_option,
    add_control_options,
    add_instance_options,
    add_model_options,
    add_replicas_option,
    control_config,
    count,
    instance_limits,
    seconds,
    switch,
)
from pie_trio.config import (
    SERVER_LIMITS,
    ControlConfig,
    InstanceLimits,
    OfferedGrants,
    SharedLimits,
    WasmConfig,
    default_cache_directory,
    default_store_path,
)
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.cli.configuration import Configuration

__all__ = ["add_serve", "add_serve_options", "configure"]

HOST, PORT = "127.0.0.1", 8000
GRANTS = {
    "logits": "see raw logits and hidden states",
    "publish": "export KV pages for all users",
    "topics": "use the topics of other users",
    "spawn": "launch children",
}
USER_PART = 4
"""With keys, a user's instances are at most the server's, divided by this."""


def add_serve(commands: Any) -> None:
    """Add ``pie serve``."""
    parser = commands.add_parser(
        "serve",
        help="serve programs over HTTP and WebSocket",
        description="Serve programs over HTTP and WebSocket. On Ctrl-C or SIGTERM, what runs may "
        "end within --grace seconds; a second signal ends it at once. Example: pie serve --port 0",
        allow_abbrev=False,
    )
    add_serve_options(parser)
    parser.set_defaults(command=_serve)


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add everything that a server can be asked for, to be read by :func:`configure`."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="a file with these options, and more: see docs/guides/serving.md (default: "
        "$PIE_CONFIG, else none). Flags go over PIE_*, which goes over the file",
    )
    parser.add_argument(
        "--host", metavar="HOST", help="where to listen (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port",
        type=count,
        metavar="PORT",
        help="0 takes one that is free and prints the URL on stdout (default: 8000)",
    )
    parser.add_argument(
        "--uds",
        type=Path,
        metavar="PATH",
        help="listen on this unix socket; on TCP too only with --host or --port",
    )
    parser.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="speak HTTPS with this certificate: PEM, the server's own first, then those that "
        "signed it; with --tls-key",
    )
    parser.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="its private key: PEM, no password"
    )
    parser.add_argument(
        "--keys",
        choices=["auto", "on", "off"],
        default="auto",
        help="whether requests need a key, which pie keys makes (default: auto, if others than "
        "this machine reach the address)",
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        dest="names",
        metavar="HOST",
        help="a name with a dot under which a proxy reaches a server without keys; repeat for "
        "several",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="where deployed programs and the key-value store are kept (default: "
        "$PIE_DATA_DIR, else ~/.local/share/pie)",
    )
    parser.add_argument(
        "--grace",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="time for what runs to end when the server stops (default: 10)",
    )
    parser.add_argument(
        "--max-instances",
        type=count,
        default=ControlConfig().max_instances,
        metavar="N",
        help=f"most at once (default: {ControlConfig().max_instances})",
    )
    parser.add_argument(
        "--engine",
        choices=["process", "thread"],
        default="process",
        help="where steps are computed: a process for each model, which is started again when it "
        "ends, or a thread of the server (default: process)",
    )
    parser.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="of the lines on stderr: for people, or an object a line (default: text)",
    )
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="warning",
        help="the lowest that is written; info tells each launch and end (default: warning)",
    )
    add_model_options(parser)
    add_replicas_option(parser)
    add_adapter_option(parser)
    add_control_options(parser)
    add_instance_options(parser, num_warm=4, what="an instance")
    for grant, what in GRANTS.items():
        usual = "on" if grant == "spawn" else "on without keys, off with them"
        parser.add_argument(
            f"--allow-{grant}",
            type=switch,
            metavar="on|off",
            help=f"whether programs that ask for it may {what} (default: {usual})",
        )
    for whose, default in (("user", SharedLimits()), ("server", SERVER_LIMITS)):
        parser.add_argument(
            f"--{whose}-limit",
            action="append",
            default=[],
            dest=f"{whose}_limits",
            metavar="KIND=N",
            help=f"what all instances of {'a' if whose == 'user' else 'the'} {whose} may use "
            f"together: {', '.join(asdict(default))}; repeat for several",
        )
    parser.set_defaults(flags=_take_defaults(parser))


def _take_defaults(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Make a parser return what was given alone; return its options with their defaults."""
    found = dict[str, argparse.Action]()
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]  # no other way
        if action.dest not in ("help", "config"):
            found[action.dest] = copy.copy(action)
            action.default = argparse.SUPPRESS
    return found


def configure(
    options: argparse.Namespace, environment: Mapping[str, str]
) -> Configuration:
    """Return what a server is asked for by flags, environment and file.

    Raises:
        ConfigError: A file or a value cannot be used.
    """
    from pie_trio.application.server.owners import asks_for_keys
    from pie_trio.cli.configuration import resolve

    found = resolve(options, options.flags, environment)
    if found["server.uds"] is None:
        found.fill("server.host", HOST)
        found.fill("server.port", PORT)
    found.fill("server.data_dir", default_store_path().parent)
    found.fill("server.cache_dir", default_cache_directory())
    found.fill("server.store", found["server.data_dir"] / "store.db")
    found.fill("control.swap_mib", ControlConfig().swap_bytes >> 20)
    found.fill("limits.instance.memory", InstanceLimits().memory_bytes >> 20)
    if (most := found["server.max_instances"]) < 1:
        raise ConfigError("--max-instances takes 1 or more, got 0")
    if (found["server.tls_cert"] is None) != (found["server.tls_key"] is None):
        raise ConfigError(
            "TLS takes a certificate and its key: give both --tls-cert and --tls-key"
        )
    hosts = [] if found["server.host"] is None else [found["server.host"]]
    has_keys = asks_for_keys(found["keys.mode"], hosts)
    offered = OfferedGrants.by_default(has_keys=has_keys)
    for grant, is_offered in asdict(offered).items():
        found.fill(f"grants.{grant}", is_offered)
    found.derive("limits.server.instances", most)
    of_user = most // USER_PART if has_keys else most
    found.derive("limits.user.instances", max(1, of_user))
    return found


def _serve(options: argparse.Namespace) -> int:
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.server.command import (
            ServeOptions,
            make_addresses,
            run_server,
        )
        from pie_trio.application.server.limits import ServerLimits
        from pie_trio.application.web.shell import ShellConfig, TlsFiles

        found = configure(options, os.environ)
        options = found.options
        control = found.over("control", control_config(options))
        serve = ServeOptions(
            addresses=make_addresses(options.host, options.port, options.uds),
            choose_models=found.models,
            data_directory=options.data_dir,
            store_path=options.store,
            wasm=WasmConfig(cache_directory=options.cache_dir),
            control=replace(control, max_instances=options.max_instances),
            limits=found.over("limits.instance", instance_limits(options)),
            num_warm=options.warm,
            allow_http=options.allow_http,
            grace_seconds=options.grace,
            server_limits=found.over("limits.clients", ServerLimits()),
            shell=found.over("connections", ShellConfig()),
            is_url_printed=options.port == 0,
            engine=options.engine,
            keys=options.keys,
            names=options.names,
            user_limits=found.over("limits.user", SharedLimits()),
            shared_limits=found.over("limits.server", SERVER_LIMITS),
            log_format=options.log_format,
            log_level=options.log_level,
            offered_grants=found.over("grants", OfferedGrants()),
            tls=options.tls_cert and TlsFiles(options.tls_cert, options.tls_key),
        )
        run_server(serve, signals)
    return 0
