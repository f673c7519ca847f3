"""The ``pie`` command: parses arguments and nothing more.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the program failed, 2 it
could not be started (usage, model, program), 130 Ctrl-C, 143 SIGTERM, 70 a bug of Pie.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING

from pie_trio._version import __version__
from pie_trio.application.authoring.commands import add_commands
from pie_trio.application.remote.commands import add_remote_commands
from pie_trio.cli.bench import add_bench
from pie_trio.cli.chat import add_chat
from pie_trio.cli.completion import add_completion
from pie_trio.cli.config import add_config
from pie_trio.cli.doctor import add_doctor
from pie_trio.cli.keys import add_keys
from pie_trio.cli.replay import add_replay
from pie_trio.cli.run import add_run
from pie_trio.cli.serve import add_serve
from pie_trio.errors import ConfigError, GuestFailedError, PieError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

EXIT_FAILED, EXIT_USAGE, EXIT_BUG, EXIT_SIGNAL = 1, 2, 70, 128
SIGINT, SIGPIPE, SIGTERM = 2, 13, 15
SIGNAL_WORDS = {SIGINT: "interrupted", SIGTERM: "terminated"}
WRITE_SECONDS = 1.0
COMMANDS = (
    add_run,
    add_replay,
    add_serve,
    add_keys,
    add_config,
    add_chat,
    add_commands,
    add_remote_commands,
    add_completion,
    add_doctor,
    add_bench,
)
"""In the order in which ``pie --help`` names them; each adds its parser, with what it calls."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = _make_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        hint = getattr(options, "hint_unknown", "")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    try:
        code: int = options.command(options)
    except GuestFailedError as error:
        _complain(error.traceback.rstrip() or f"error: {error}")
        return EXIT_FAILED
    except ConfigError as error:
        _complain(f"pie: {error}")
        return EXIT_USAGE
    except BrokenPipeError:
        # Nobody reads any more; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SIGNAL + SIGPIPE
    except PieError as error:
        _complain(f"pie: {error}")
        return EXIT_FAILED
    except Exception:  # noqa: BLE001 - the last line of defence
        _complain(
            traceback.format_exc() + "pie: this is a bug of Pie; please report it"
        )
        return EXIT_BUG
    except KeyboardInterrupt as error:
        number: int = getattr(error, "number", SIGINT)
        # Not where stderr is a full pipe: that would wait for its reader.
        with suppress(OSError, ValueError):
            if select.select([], [sys.stderr.fileno()], [], WRITE_SECONDS)[1]:
                _complain(f"pie: {SIGNAL_WORDS[number]}")
        return EXIT_SIGNAL + number
    return code


def _complain(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - it is the command line


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pie", description="Serve programs that drive LLM generation themselves."
    )
    parser.add_argument("--version", action="version", version=f"pie {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    return parser
