"""``pie replay``: a recorded run once more, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.config import WasmConfig, default_cache_directory

if TYPE_CHECKING:
    import argparse

__all__ = ["add_replay"]


def add_replay(commands: Any) -> None:
    """Add ``pie replay``."""
    parser = commands.add_parser(
        "replay",
        help="run a program on the answers of a recorded run, without a model",
        description="Run a program on what entered a run that `pie run --record FILE` has "
        "recorded: it sends and returns the same, without a model, a network or a clock. Where "
        "it makes another call than it did, the run ends and says which.",
        allow_abbrev=False,
    )
    parser.add_argument("recording", type=Path, help="the file of `pie run --record`")
    parser.add_argument(
        "program",
        type=Path,
        nargs="?",
        help="the program; without it, the one that was recorded, at the path that it had",
    )
    parser.add_argument(
        "--mode",
        choices=("wasm", "native"),
        help="where to run it; without it, as it was recorded; native is for pdb",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where compiled components are kept",
    )
    parser.set_defaults(command=_replay)


def _replay(options: argparse.Namespace) -> int:
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.run.replaying import replay

        replay(
            *(options.recording, options.program, signals),
            is_native=None if options.mode is None else options.mode == "native",
            wasm=WasmConfig(
                cache_directory=options.cache_dir or default_cache_directory()
            ),
        )
    return 0
