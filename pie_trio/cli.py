"""The ``pie`` command: parses arguments and nothing more.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 the program failed, 2 it
could not be started (usage, model, program), 130 Ctrl-C, 143 SIGTERM, 70 a bug of Pie.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio._version import __version__
from pie_trio.application.authoring.commands import add_commands
from pie_trio.application.remote.commands import add_remote_commands
from pie_trio.config import (
    ControlConfig,
    InstanceLimits,
    ModelConfig,
    WasmConfig,
    default_cache_directory,
    default_store_path,
)
from pie_trio.errors import ConfigError, GuestFailedError, PieError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

EXIT_FAILED, EXIT_USAGE, EXIT_BUG, EXIT_SIGNAL = 1, 2, 70, 128
SIGINT, SIGPIPE, SIGTERM = 2, 13, 15
SIGNAL_WORDS = {SIGINT: "interrupted", SIGTERM: "terminated"}
WRITE_SECONDS = 1.0
CHAT_PROGRAM = Path(__file__).parent / "programs" / "chat"
CHAT_MARKER = "> "
MIN_MEMORY_MIB, MAX_MEMORY_MIB = 64, 4096
"""The memory of a fresh guest, and all that 32 bits can address."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = _make_parser().parse_args(argv)
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
    _add_run(commands)
    _add_serve(commands)
    _add_chat(commands)
    add_commands(commands)
    add_remote_commands(commands)
    _add_doctor(commands)
    return parser


def _add_run(commands: Any) -> None:
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
    _add_model_options(parser)
    _add_adapter_option(parser)
    _add_control_options(parser)
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
    _add_instance_options(parser, num_warm=0, what="the program")
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
        "--explain",
        action="store_true",
        help="say at the end, on stderr, which sizes the batches had and why",
    )
    parser.add_argument(
        "program",
        type=Path,
        help="a .py file, a folder with an app.py, a .zip, or a .wasm of `pie build`",
    )
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="the program's own arguments"
    )
    parser.set_defaults(command=_run)


def _add_serve(commands: Any) -> None:
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
        type=_count,
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
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="time for what runs to end when the server stops (default: 10)",
    )
    parser.add_argument(
        "--max-instances",
        type=_count,
        default=ControlConfig().max_instances,
        metavar="N",
        help=f"most at once (default: {ControlConfig().max_instances})",
    )
    _add_model_options(parser)
    _add_adapter_option(parser)
    _add_control_options(parser)
    _add_instance_options(parser, num_warm=4, what="an instance")
    parser.set_defaults(command=_serve)


def _add_instance_options(
    parser: argparse.ArgumentParser, *, num_warm: int, what: str
) -> None:
    parser.add_argument(
        "--warm",
        type=_count,
        default=num_warm,
        metavar="N",
        help=f"guests to instantiate ahead of time (default: {num_warm})",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"end {what} after this time",
    )
    parser.add_argument(
        "--memory",
        type=_memory,
        metavar="MIB",
        help=f"memory that {what} may use (default: "
        f"{InstanceLimits().memory_bytes >> 20})",
    )
    parser.add_argument(
        "--allow-http",
        action="append",
        default=[],
        metavar="HOST",
        help=f"let {what} reach this host: HOST, HOST:PORT, *.HOST, or * for all public "
        "ones; local://HOST for one of this network; repeat for several (default: none)",
    )
    parser.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="the key-value store, made when it is first used (default: store.db in "
        "$PIE_DATA_DIR, else in ~/.local/share/pie)",
    )


def _add_chat(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="chat with a model in the terminal",
        description="Chat with a model in the terminal, with an engine of its own. Each line is a "
        "message; /reset forgets all of them, and the end of the input (Ctrl-D) ends it.",
        epilog="example: pie chat --system 'You are terse.' --temperature 0.7",
        allow_abbrev=False,
    )
    _add_model_options(parser)
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
        type=_count,
        default=512,
        metavar="N",
        help="most tokens of a reply (default: 512)",
    )
    parser.set_defaults(command=_chat)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor", help="say what is there, what is missing, what to do"
    )
    _add_model_options(parser)
    parser.set_defaults(command=_doctor)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(adapters=[])  # for commands whose programs could not choose one
    parser.add_argument(
        "--model",
        action="append",
        metavar="[NAME=]DIR",
        help="a model in the Hugging Face layout; repeat for several, the first is the default "
        "(default: $PIE_MODEL, else pie-tiny, which comes with Pie)",
    )
    parser.add_argument(
        "--kv-pages", type=_count, metavar="N", help="KV pages of each model"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "auto"],
        default="float32",
        help="of weights and KV cache (default: float32)",
    )
    parser.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="CPU threads of a step (default: by model size)",
    )
    parser.add_argument(
        "--kernels",
        choices=["auto", "torch", "native"],
        default="auto",
        help="what computes a step on the CPU: torch alone, or C++ for what torch is slow at "
        "(default: auto, the latter if it was built; pie doctor tells)",
    )
    parser.add_argument(
        "--quantize",
        choices=["int8"],
        help="compute linear layers in 8 bits on the CPU: faster, with slightly different results",
    )
    parser.add_argument(
        "--cache-dir",
        type=Path,
        metavar="DIR",
        help="where compiled components are kept (default: $PIE_CACHE_DIR, else ~/.cache/pie)",
    )


def _add_adapter_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[MODEL:]NAME=DIR",
        dest="adapters",
        help="a LoRA adapter of the model, as PEFT saves it, which programs use by its name; "
        "repeat for several, and name the model where there are several",
    )


def _add_control_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--policy",
        metavar="NAME[:ARGS]",
        default=ControlConfig().policy,
        help="when a batch is dispatched: rendezvous, adaptive, eager, k:8, t:0.016, "
        "k_or_t:8,0.016 (default: rendezvous)",
    )
    parser.add_argument(
        "--contention",
        metavar="NAME",
        default=ControlConfig().contention,
        help="what happens when KV pages are short: ladder (drop unused exports, tell, suspend, "
        "end) or fcfs (end the newest) (default: ladder)",
    )
    parser.add_argument(
        "--swap-mib",
        type=_count,
        metavar="N",
        help="host memory for the KV pages of suspended inferlets (default: 1024)",
    )


def _control(options: argparse.Namespace) -> ControlConfig:
    from pie_trio.control.contention import make_contention_policy
    from pie_trio.control.policies import make_policy

    make_policy(options.policy)  # before the model is loaded
    make_contention_policy(options.contention)
    config = ControlConfig(policy=options.policy, contention=options.contention)
    if options.swap_mib is not None:
        config = replace(config, swap_bytes=options.swap_mib << 20)
    return config


def _count(text: str) -> int:
    value = _integer(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _memory(text: str) -> int:
    value = _integer(text)
    if not MIN_MEMORY_MIB <= value <= MAX_MEMORY_MIB:
        raise argparse.ArgumentTypeError(
            f"expected {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB}, got {text}"
        )
    return value


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None


def _seconds(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and value > 0:
            return value
    raise argparse.ArgumentTypeError(
        f"expected a positive number of seconds, got {text!r}"
    )


def _models(options: argparse.Namespace) -> list[ModelConfig]:
    from pie_trio.application.run.setup import (
        default_model,
        parse_adapters,
        parse_model,
    )

    chosen = [parse_model(text) for text in options.model or ()] or [default_model()]
    names = [model.name for model in chosen]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name}: say --model NAME=DIR")
    adapters = parse_adapters(options.adapters, chosen)
    return [
        replace(
            model,
            adapters=adapters[model.name],
            num_pages=options.kv_pages,
            dtype=options.dtype,
            num_threads=options.threads or None,
            kernels=options.kernels,
            quantize=options.quantize,
        )
        for model in chosen
    ]


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


def _chat(options: argparse.Namespace) -> int:
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.run.command import RunOptions, run_in_wasm

        cache_directory = options.cache_dir or default_cache_directory()
        arguments = {
            "system": options.system,
            "temperature": options.temperature,
            "max-tokens": options.max_tokens,
            "marker": CHAT_MARKER if sys.stdin.isatty() else "",
        }
        run = RunOptions(
            program=CHAT_PROGRAM,
            arguments=[f"--{name}={value}" for name, value in arguments.items()],
            choose_models=lambda: _models(options),
            wasm=WasmConfig(cache_directory=cache_directory),
            store_path=default_store_path(),
        )
        run_in_wasm(run, signals)
    return 0


def _run(options: argparse.Namespace) -> int:
    from pie_trio.application.run.signals import catch_signals

    with catch_signals() as signals:
        from pie_trio.application.run.command import RunOptions, run_in_wasm
        from pie_trio.application.run.native import run_natively
        from pie_trio.application.run.reporting import Report, reporting

        report = Report()
        limits = _limits(options)
        cache_directory = options.cache_dir or default_cache_directory()
        run = RunOptions(
            program=options.program,
            arguments=options.arguments,
            choose_models=lambda: _models(options),
            wasm=WasmConfig(cache_directory=cache_directory),
            control=_control(options),
            limits=limits,
            num_warm=options.warm,
            allow_http=options.allow_http,
            store_path=options.store or default_store_path(),
            programs=_programs(options.programs),
            on_serving=report.watch,
        )
        if options.native:
            for flag in ("memory", "warm"):
                if getattr(options, flag):
                    raise ConfigError(
                        f"--{flag} is of the sandbox, which --native runs without"
                    )
            if options.watch:
                raise ConfigError("--watch runs in the sandbox: leave --native out")
        with reporting(report, options.trace, is_explained=options.explain):
            if options.watch:
                from pie_trio.application.run.watching import run_watching

                run_watching(run, signals)
            elif options.native:
                run_natively(run)
            else:
                run_in_wasm(run, signals)
    return 0


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
        control = _control(options)
        if options.max_instances < 1:
            raise ConfigError("--max-instances takes 1 or more, got 0")
        serve = ServeOptions(
            addresses=make_addresses(options.host, options.port, options.uds),
            choose_models=lambda: _models(options),
            data_directory=data_directory,
            store_path=options.store or data_directory / "store.db",
            wasm=WasmConfig(cache_directory=cache_directory),
            control=replace(control, max_instances=options.max_instances),
            limits=_limits(options),
            num_warm=options.warm,
            allow_http=options.allow_http,
            grace_seconds=options.grace,
            is_url_printed=options.port == 0,
        )
        run_server(serve, signals)
    return 0


def _limits(options: argparse.Namespace) -> InstanceLimits:
    limits = InstanceLimits(wall_seconds=options.timeout)
    if options.memory is not None:
        limits = replace(limits, memory_bytes=options.memory << 20)
    return limits


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
