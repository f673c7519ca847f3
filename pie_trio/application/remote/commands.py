"""The commands that talk to a server: their options, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

    from pie_trio.client import BlockingClient, Event, Log, LogLine, Program

__all__ = ["add_remote_commands", "add_server_options", "chat_on_server"]

SHORT_HASH = 12
SERVER_HELP = (
    "http://HOST:PORT, https://HOST or unix:PATH (default: $PIE_SERVER, else "
    "http://127.0.0.1:8000)"
)


def add_remote_commands(commands: Any) -> None:
    """Add the commands to the parser of ``pie``."""
    deploy = _add(
        *(commands, "deploy", _deploy, "send a program to a server"),
        "Send a program to a server, in place of the one of its name. Example: pie deploy agent/",
    )
    deploy.add_argument(
        "--name", help="what to call it (default: as its file or folder)"
    )
    deploy.add_argument(
        "program",
        type=Path,
        help="a .py file, a folder with an app.py, a .zip of one, or a .wasm component",
    )
    launch = _add(
        *(commands, "launch", _launch, "run a program that was deployed"),
        "Run a program on a server, and print what it sends. Options of pie stand before the "
        "name, the program's own arguments after it; `pie launch NAME --help` shows them. "
        "Example: pie launch agent --prompt hello",
    )
    launch.add_argument(
        "--detach",
        action="store_true",
        help="print the instance's id and leave it to run; see pie logs, pie ps, pie kill",
    )
    launch.add_argument("name", help="of a program: see pie programs")
    launch.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="the program's own arguments"
    )
    ps = _add(
        *(commands, "ps", _ps, "list instances"),
        "List the instances on a server. Example: pie ps --all",
    )
    ps.add_argument(
        "-a", "--all", action="store_true", help="also those that have ended"
    )
    _add_quiet(ps)
    logs = _add(
        *(commands, "logs", _logs, "print what an instance has logged"),
        "Print what an instance has logged and printed. Example: pie logs -f agent-1f00d1",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends")
    logs.add_argument("id", help="of an instance: see pie ps")
    kill = _add(
        *(commands, "kill", _kill, "end instances"),
        "Cancel instances; what has not cleaned up in a few seconds is ended where it stands. "
        "Example: pie kill agent-1f00d1",
    )
    kill.add_argument("ids", nargs="+", metavar="id", help="of an instance: see pie ps")
    top = _add(
        *(commands, "top", _top, "watch what a server does"),
        "Watch the instances, batches, tokens and pages of a server, until Ctrl-C. Example: pie "
        "top --once --json",
    )
    top.add_argument("--once", action="store_true", help="print one snapshot")
    programs = _add(
        *(commands, "programs", _programs, "list programs"),
        "List the programs that a server can launch. Example: pie programs --json",
    )
    _add_quiet(programs)
    undeploy = _add(
        *(commands, "undeploy", _undeploy, "remove a program from a server"),
        "Remove a program from a server; its instances run on. Example: pie undeploy agent",
    )
    undeploy.add_argument("name", help="of a program: see pie programs")


def _add(
    commands: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=description, allow_abbrev=False
    )
    add_server_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command)
    return parser


def add_server_options(
    parser: argparse.ArgumentParser, default: str | None = None
) -> None:
    """Add the options that say which server, and who asks.

    Args:
        parser: Of a command.
        default: What the help says of ``--server`` instead.
    """
    parser.add_argument(
        "--server",
        metavar="URL",
        help=SERVER_HELP if default is None else default,
    )
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="of yours on that server, if it asks for one (default: $PIE_KEY, which other users "
        "of this machine cannot see)",
    )
    parser.add_argument(
        "--user",
        metavar="NAME",
        help="do it for this user of the server; takes a key with the scope admin",
    )
    parser.add_argument(
        "--ca-file",
        type=Path,
        metavar="FILE",
        help="certificates to trust over https, instead of the system's: PEM (default: "
        "$PIE_CA_FILE, else $SSL_CERT_FILE)",
    )


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-q", "--quiet", action="store_true", help="print names alone, one a line"
    )


def _client_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return how to reach the server."""
    from pie_trio.client.trust import trust_file

    context = None if options.ca_file is None else trust_file(options.ca_file)
    return {
        "url": options.server,
        "key": options.key,
        "user": options.user,
        "ssl_context": context,
    }


@contextmanager
def _connected(options: argparse.Namespace) -> Generator[BlockingClient]:
    """Talk to the server for as long as the block is open.

    Raises:
        GuestFailedError: A program failed.
        RemoteError: Something else went wrong.
    """
    from pie_trio.client import BlockingClient, ProgramFailedError
    from pie_trio.errors import GuestFailedError

    with BlockingClient(**_client_options(options)) as pie:
        try:
            yield pie
        except ProgramFailedError as error:
            raise GuestFailedError(
                kind=error.kind, message=error.message, traceback=error.traceback
            ) from error


def _deploy(options: argparse.Namespace) -> int:
    with _connected(options) as pie:
        program = pie.deploy(options.program, options.name or "")
    if options.json:
        return _print_json(program.raw)
    outcome = {"unchanged": "is as it was"}.get(program.outcome, program.outcome)
    _print(
        f"{program.name}: {outcome}, {program.num_bytes} bytes, "
        f"{program.sha256[:SHORT_HASH]}{_progress(program)}; run it with: "
        f"pie launch {program.name}"
    )
    return 0


def _launch(options: argparse.Namespace) -> int:
    from pie_trio.application.remote.launching import print_events
    from pie_trio.application.run.arguments import parse_program_arguments
    from pie_trio.errors import ConfigError

    with _connected(options) as pie:
        described = pie.program(options.name, waits=True)
        if described.arguments is None:
            raise ConfigError(
                f"{options.name} cannot be launched{_progress(described)}"
            )
        arguments = parse_program_arguments(
            described.raw, options.arguments, program=f"pie launch {options.name}"
        )
        if not options.detach:
            with pie.run(options.name, **arguments) as run:
                print_events(run, is_json=options.json)
            return 0
        instance = pie.launch(options.name, **arguments)
        if options.json:
            return _print_json(instance.status().raw)
    _print(instance.instance_id)
    return 0


def chat_on_server(
    options: argparse.Namespace, arguments: Mapping[str, object]
) -> None:
    """Run the server's program ``chat`` with the terminal as its client."""
    from pie_trio.application.remote.launching import print_events

    with _connected(options) as pie, pie.run("chat", **arguments) as run:
        print_events(run, is_json=False)


def _ps(options: argparse.Namespace) -> int:
    with _connected(options) as pie:
        found = [one.raw for one in pie.instances()]
    if not options.all:
        found = [one for one in found if one["state"] == "running"]
    if options.json:
        return _print_json(found)
    if options.quiet:
        return _print_names([one["id"] for one in found])
    _print_table(
        ("ID", "STATE", "PROGRAM", "SECONDS", "PAGES", "IN FLIGHT", "SAMPLED"),
        [
            (
                *(one["id"], one["state"], one["program"], f"{one['seconds']:.1f}"),
                *(one["pages"], one["commands_in_flight"], one["tokens_sampled"]),
            )
            for one in found
        ],
    )
    return 0


def _logs(options: argparse.Namespace) -> int:
    with _connected(options) as pie:
        instance = pie.instance(options.id)
        if options.follow:
            with instance.follow_logs() as events:
                for event in events:
                    _print_event(event, is_json=options.json)
            return 0
        log = instance.logs()
    if options.json:
        lines = [{"source": o.source, "text": o.text, "at": o.at} for o in log.lines]
        return _print_json({"lines": lines, "lost": log.num_lost})
    for line in log.lines:
        _print(_text(line))
    return 0


def _kill(options: argparse.Namespace) -> int:
    with _connected(options) as pie:
        states = [pie.instance(name).cancel() for name in options.ids]
    if options.json:
        return _print_json([state.raw for state in states])
    for state in states:
        _print(f"{state.instance_id}: {state.state}")
    return 0


def _top(options: argparse.Namespace) -> int:
    from pie_trio.application.remote.top import run_top
    from pie_trio.client import Client

    make_client = partial(Client, **_client_options(options))
    return run_top(make_client, is_once=options.once, is_json=options.json)


def _programs(options: argparse.Namespace) -> int:
    with _connected(options) as pie:
        found = pie.programs()
    if options.json:
        return _print_json([program.raw for program in found])
    if options.quiet:
        return _print_names([program.name for program in found])
    _print_table(
        ("NAME", "BYTES", "SHA256", "STATE", "FROM"),
        [
            (
                *(one.name, one.num_bytes, one.sha256[:SHORT_HASH]),
                one.state,
                "Pie" if one.is_built_in else "you",
            )
            for one in found
        ],
    )
    return 0


def _undeploy(options: argparse.Namespace) -> int:
    with _connected(options) as pie:
        pie.undeploy(options.name)
    if options.json:
        return _print_json({"name": options.name, "deleted": True})
    _print(f"{options.name}: removed")
    return 0


def _progress(program: Program) -> str:
    """Return what is to be said of a component that is not ready; empty for all else."""
    if program.state == "compiling":
        return ", being compiled"
    return f": {program.message}" if program.state == "failed" else ""


def _print_event(event: Event, *, is_json: bool) -> None:
    from pie_trio.client import Log

    if is_json:
        _print(json.dumps({"event": event.kind, **event.data}))
    elif isinstance(event, Log):
        _print(_text(event))


def _text(line: Log | LogLine) -> str:
    prefix = "" if line.source in ("stdout", "stderr") else f"[{line.source}] "
    return f"{prefix}{line.text}"


def _print_json(value: object) -> int:
    _print(json.dumps(value, ensure_ascii=False, indent=2))
    return 0


def _print_names(names: Sequence[str]) -> int:
    for name in names:
        _print(name)
    return 0


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns that are as wide as they must be, for people and for awk."""
    texts = [list(heads), *(list(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        _print("  ".join(cells).rstrip())


def _print(text: str) -> None:
    from pie_trio.application.run.console import write_all
    from pie_trio.errors import ConfigError

    try:
        write_all(sys.stdout, (text + "\n").encode("utf-8", "replace"))
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot write to stdout: {error.strerror}") from error
