"""``pie run``: a program, with an engine of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.cli.options import (
    add_adapter_option,
    add_control_options,
    add_instance_options,
    add_model_options,
    choose_models,
    control_config,
    instance_limits,
)
from pie_trio.config import WasmConfig, default_cache_directory, default_store_path
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["add_run"]


def add_run(commands: Any) -> None:
    """Add ``pie run``."""
    parser = commands.add_parser(
        "run",
        help="run a program here, with an engine of its own",
        description="Run a program here, with an engine of its own. Options of pie stand before "
        "the program, the program's own arguments after it; `pie run PROGRAM --help` shows them. "
        "What the program sends is printed on stdout. What it receives are the lines of stdin, "
        "without their ends; they are read from when it first receives, and the end of the file "
        "is the end of the messages.",
        allow_abbrev=False,
    )
    add_model_options(parser)
    add_adapter_option(parser)
    add_control_options(parser)
    parser.add_argument(
        "--native",
        action="store_true",
        help="run the program in this Python, without a sandbox: for pdb",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="run the program again whenever one of its files is saved, until Ctrl-C; it gets "
        "no input",
    )
    add_instance_options(parser, num_warm=0, what="the program")
    parser.add_argument(
        "--program",
        action="append",
        default=[],
        metavar="NAME=PATH",
        dest="programs",
        help="a program that this one may launch by name, besides itself; repeat for several",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="write what happened to this file, for https://ui.perfetto.dev: each step, each "
        "command, and the spans of the program",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write to this file when the program, the host and the engine had the processor, "
        "for https://www.speedscope.app, and sum it up on stderr",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say at the end, on stderr, which sizes the batches had and why",
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="write to this file what enters the program (answers, messages, time, randomness), "
        "so that `pie replay FILE` runs it again without a model",
    )
    parser.add_argument(
        "program",
        type=Path,
        help="a .py file, a folder with an app.py, a .zip, or a .wasm of `pie build`",
    )
    arguments = parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="the program's own arguments"
    )
    arguments.required = False  # or a usage error would name it beside the program
    parser.set_defaults(command=_run, hint_unknown=": the program's own stand after it")


def _run(options: argparse.Namespace) -> int:
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.run.command import (
            RunOptions,
            limits_of_ones_own,
            run_in_wasm,
        )
        from pie_trio.application.run.native import run_natively
        from pie_trio.application.run.reporting import Report, reporting

        report = Report()
        limits = limits_of_ones_own(instance_limits(options))
        cache_directory = options.cache_dir or default_cache_directory()
        run = RunOptions(
            program=options.program,
            arguments=options.arguments,
            choose_models=lambda: choose_models(options),
            wasm=WasmConfig(cache_directory=cache_directory),
            control=control_config(options),
            limits=limits,
            num_warm=options.warm,
            allow_http=options.allow_http,
            store_path=options.store or default_store_path(),
            programs=_programs(options.programs),
            on_serving=report.watch,
            record_path=options.record,
            profile_path=options.profile,
        )
        if options.record is not None:
            for flag in ("warm", "watch"):
                if getattr(options, flag):
                    raise ConfigError(
                        f"--record is for one run from its start: leave --{flag} out"
                    )
        if options.profile is not None and options.watch:
            raise ConfigError("--profile is of one run: leave --watch out")
        if options.native:
            if options.profile is not None:
                raise ConfigError(
                    "--profile measures the sandbox: leave --native out, or use Python's own "
                    "profilers with it"
                )
            for flag in ("memory", "warm"):
                if getattr(options, flag):
                    raise ConfigError(
                        f"--{flag} is of the sandbox, which --native runs without"
                    )
            if options.watch:
                raise ConfigError("--watch runs in the sandbox: leave --native out")
        with reporting(report, options.trace, signals, is_explained=options.explain):
            if options.watch:
                from pie_trio.application.run.watching import run_watching

                run_watching(run, signals)
            elif options.native:
                run_natively(run, signals)
            else:
                run_in_wasm(run, signals)
    return 0


def _programs(texts: Sequence[str]) -> dict[str, Path]:
    programs: dict[str, Path] = {}
    for text in texts:
        name, separator, path = text.partition("=")
        if not (name and separator and path):
            raise ConfigError(f"--program takes NAME=PATH, got {text!r}")
        if name in programs:
            raise ConfigError(f"two programs are called {name}: choose another name")
        programs[name] = Path(path).expanduser()
    return programs
