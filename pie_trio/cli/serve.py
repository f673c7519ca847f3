"""``pie serve``: programs over HTTP and WebSocket."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.cli.options import (
    add_adapter_option,
    add_control_options,
    add_instance_options,
    add_model_options,
    choose_models,
    control_config,
    count,
    instance_limits,
    seconds,
)
from pie_trio.config import (
    ControlConfig,
    WasmConfig,
    default_cache_directory,
    default_store_path,
)
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_serve"]


def add_serve(commands: Any) -> None:
    """Add ``pie serve``."""
    parser = commands.add_parser(
        "serve",
        help="serve programs over HTTP and WebSocket",
        description="Serve programs over HTTP and WebSocket. On Ctrl-C or SIGTERM, what runs may "
        "end within --grace seconds; a second signal ends it at once. Example: pie serve --port 0",
        allow_abbrev=False,
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
    add_model_options(parser)
    add_adapter_option(parser)
    add_control_options(parser)
    add_instance_options(parser, num_warm=4, what="an instance")
    parser.set_defaults(command=_serve)


def _serve(options: argparse.Namespace) -> int:
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.server.command import (
            ServeOptions,
            make_addresses,
            run_server,
        )

        data_directory = options.data_dir or default_store_path().parent
        cache_directory = options.cache_dir or default_cache_directory()
        control = control_config(options)
        if options.max_instances < 1:
            raise ConfigError("--max-instances takes 1 or more, got 0")
        serve = ServeOptions(
            addresses=make_addresses(options.host, options.port, options.uds),
            choose_models=lambda: choose_models(options),
            data_directory=data_directory,
            store_path=options.store or data_directory / "store.db",
            wasm=WasmConfig(cache_directory=cache_directory),
            control=replace(control, max_instances=options.max_instances),
            limits=instance_limits(options),
            num_warm=options.warm,
            allow_http=options.allow_http,
            grace_seconds=options.grace,
            is_url_printed=options.port == 0,
        )
        run_server(serve, signals)
    return 0
