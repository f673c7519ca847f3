"""``pie doctor``: what is there, what is missing, what to do."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from pie_trio.cli.options import add_model_options
from pie_trio.config import default_cache_directory
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import argparse

__all__ = ["add_doctor"]


def add_doctor(commands: Any) -> None:
    """Add ``pie doctor``."""
    parser = commands.add_parser(
        "doctor", help="say what is there, what is missing, what to do"
    )
    add_model_options(parser)
    parser.set_defaults(command=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from pie_trio.application.doctor import examine, print_report

    cache_directory = options.cache_dir or default_cache_directory()
    try:
        code = print_report(examine(options.model or (), cache_directory))
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is still in the buffer would fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise ConfigError(f"cannot write to stdout: {error.strerror}") from error
    return code
