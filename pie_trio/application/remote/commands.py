"""The commands that talk to a server: their options, and what they print."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pie_trio.application.remote.connection import Server, default_server, quoted

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["add_remote_commands"]

SHORT_HASH = 12


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
        "program", type=Path, help="a .py file, a folder with an app.py, or a .zip"
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
    logs = _add(
        *(commands, "logs", _logs, "print what an instance has logged"),
        "Print what an instance has logged and printed. Example: pie logs -f agent-1f00d1",
    )
    logs.add_argument("-f", "--follow", action="store_true", help="until it ends")
    logs.add_argument("id", help="of an instance: see pie ps")
    kill = _add(
        *(commands, "kill", _kill, "end instances"),
        "End instances where they stand. Example: pie kill agent-1f00d1",
    )
    kill.add_argument("ids", nargs="+", metavar="id", help="of an instance: see pie ps")
    _add(
        *(commands, "programs", _programs, "list programs"),
        "List the programs that a server can launch. Example: pie programs --json",
    )
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
    parser.add_argument(
        "--server",
        metavar="URL",
        help="http://HOST:PORT, https://HOST or unix:PATH (default: $PIE_SERVER, else "
        "http://127.0.0.1:8000)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command)
    return parser


def _server(options: argparse.Namespace) -> Server:
    return Server(options.server or default_server())


def _deploy(options: argparse.Namespace) -> int:
    from pie_trio.application.remote.packing import pack_program

    server = _server(options)
    name, data = pack_program(options.program)
    name = options.name or name
    answer = server.ask("PUT", f"/v1/programs/{quoted(name)}", body=data)
    if options.json:
        return _print_json(answer)
    outcome = {"unchanged": "is as it was"}.get(answer["outcome"], answer["outcome"])
    _print(
        f"{name}: {outcome}, {answer['bytes']} bytes, {answer['sha256'][:SHORT_HASH]}; "
        f"run it with: pie launch {name}"
    )
    return 0


def _launch(options: argparse.Namespace) -> int:
    from pie_trio.application.remote.launching import print_events
    from pie_trio.application.run.arguments import parse_program_arguments

    server = _server(options)
    described = server.ask("GET", f"/v1/programs/{quoted(options.name)}")
    arguments = parse_program_arguments(
        described, options.arguments, program=f"pie launch {options.name}"
    )
    asked = {
        "program": options.name,
        "arguments": arguments,
        "detach": bool(options.detach),
    }
    if options.detach:
        answer = server.ask("POST", "/v1/instances", json_body=asked)
        if options.json:
            return _print_json(answer)
        _print(answer["id"])
        return 0
    with server.stream("POST", "/v1/instances", json_body=asked) as events:
        print_events(server, events, is_json=options.json)
    return 0


def _ps(options: argparse.Namespace) -> int:
    found = _server(options).ask("GET", "/v1/instances")["instances"]
    if not options.all:
        found = [one for one in found if one["state"] == "running"]
    if options.json:
        return _print_json(found)
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
    server = _server(options)
    path = f"/v1/instances/{quoted(options.id)}/logs"
    if options.follow:
        with server.stream("GET", f"{path}?follow=1") as events:
            for event in events:
                if options.json:
                    _print(json.dumps({"event": event.kind, **event.data}))
                elif event.kind == "log":
                    _print(_line(event.data))
        return 0
    answer = server.ask("GET", path)
    if options.json:
        return _print_json(answer)
    for line in answer["lines"]:
        _print(_line(line))
    return 0


def _kill(options: argparse.Namespace) -> int:
    server = _server(options)
    states = [
        server.ask("POST", f"/v1/instances/{quoted(name)}/cancel")
        for name in options.ids
    ]
    if options.json:
        return _print_json(states)
    for state in states:
        _print(f"{state['id']}: {state['state']}")
    return 0


def _programs(options: argparse.Namespace) -> int:
    found = _server(options).ask("GET", "/v1/programs")["programs"]
    if options.json:
        return _print_json(found)
    _print_table(
        ("NAME", "BYTES", "SHA256", "FROM"),
        [
            (
                *(one["name"], one["bytes"], one["sha256"][:SHORT_HASH]),
                "Pie" if one["built_in"] else "you",
            )
            for one in found
        ],
    )
    return 0


def _undeploy(options: argparse.Namespace) -> int:
    path = f"/v1/programs/{quoted(options.name)}"
    answer = _server(options).ask("DELETE", path)
    if options.json:
        return _print_json(answer)
    _print(f"{options.name}: removed")
    return 0


def _line(fields: Any) -> str:
    source = fields["source"]
    prefix = "" if source in ("stdout", "stderr") else f"[{source}] "
    return f"{prefix}{fields['text']}"


def _print_json(value: object) -> int:
    _print(json.dumps(value, ensure_ascii=False, indent=2))
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
