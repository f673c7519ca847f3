"""``pie chat``: a conversation in the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.application.remote.commands import add_server_options, chat_on_server
from pie_trio.cli.options import add_model_options, choose_models, count
from pie_trio.config import WasmConfig, default_cache_directory, default_store_path
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_chat"]

CHAT_PROGRAM = Path(__file__).parent.parent / "programs" / "chat"
CHAT_MARKER = "> "


def add_chat(commands: Any) -> None:
    """Add ``pie chat``."""
    parser = commands.add_parser(
        "chat",
        help="chat with a model in the terminal",
        description="Chat with a model in the terminal, with an engine of its own or, with "
        "--server, on a server. Each line is a message; /reset forgets all of them, and the end of "
        "the input (Ctrl-D) ends it.",
        epilog="example: pie chat --system 'You are terse.' --temperature 0.7",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_server_options(
        parser,
        "run the server's program `chat`: http://HOST:PORT, https://HOST or unix:PATH",
    )
    parser.add_argument(
        "--system", default="", metavar="TEXT", help="what the system message says"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        help="0 always takes the most likely token (default: 0)",
    )
    parser.add_argument(
        "--max-tokens",
        type=count,
        default=512,
        metavar="N",
        help="most tokens of a reply (default: 512)",
    )
    parser.set_defaults(command=_chat)


def _chat(options: argparse.Namespace) -> int:
    arguments = {
        "system": options.system,
        "temperature": options.temperature,
        "max_tokens": options.max_tokens,
        "marker": CHAT_MARKER if sys.stdin.isatty() else "",
    }
    if options.server is not None:
        if options.model:
            raise ConfigError(
                "--model is for an engine of its own: a server has its models, so leave it out, "
                "or --server"
            )
        chat_on_server(options, arguments)
        return 0
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.run.command import RunOptions, run_in_wasm

        cache_directory = options.cache_dir or default_cache_directory()
        run = RunOptions(
            program=CHAT_PROGRAM,
            arguments=[
                f"--{name.replace('_', '-')}={value}"
                for name, value in arguments.items()
            ],
            choose_models=lambda: choose_models(options),
            wasm=WasmConfig(cache_directory=cache_directory),
            store_path=default_store_path(),
        )
        run_in_wasm(run, signals)
    return 0
