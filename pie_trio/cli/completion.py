"""``pie completion``: what makes a shell complete the commands of ``pie``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["add_completion"]

SHELLS = ("bash", "zsh", "fish")
INSTALL = """where it goes:
  bash  pie completion bash > ~/.local/share/bash-completion/completions/pie
  zsh   pie completion zsh > "${fpath[1]}/_pie"
  fish  pie completion fish > ~/.config/fish/completions/pie.fish
and once more when Pie has another version. Names of programs and instances are those of the server
at $PIE_SERVER."""
ASKED = {
    ("launch", "name"): "programs -q",
    ("undeploy", "name"): "programs -q",
    ("logs", "id"): "ps -aq",
    ("kill", "ids"): "ps -q",
}
"""The command of ``pie`` whose lines an argument of a command may be."""


def add_completion(commands: Any) -> None:
    """Add ``pie completion``."""
    parser = commands.add_parser(
        "completion",
        help="print what completes commands in a shell",
        description="Print a script that makes a shell complete the commands and options of pie.",
        epilog=INSTALL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(command=_print_script)


def _print_script(options: argparse.Namespace) -> int:
    import shtab

    from pie_trio.cli import _make_parser  # pyright: ignore[reportPrivateUsage]  # all of it

    parser = _make_parser()
    _note_values("", parser)
    for name, command in _subcommands(parser):
        _note_values(name, command)
    print(shtab.complete(parser, options.shell))  # noqa: T201 - it is the result
    return 0


def _subcommands(
    parser: argparse.ArgumentParser,
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Yield the commands below a parser, each described in as few words as its summary."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]  # no other way
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            choices = cast("dict[str, argparse.ArgumentParser]", action.choices)  # pyright: ignore[reportUnknownMemberType]
            summaries = {a.dest: a.help for a in action._choices_actions}  # pyright: ignore[reportPrivateUsage]
            for name, command in choices.items():
                command.description = summaries.get(name)
                yield name, command
                yield from _subcommands(command)


def _note_values(name: str, parser: argparse.ArgumentParser) -> None:
    """Say of each option and argument of a command how its values are found."""
    import shtab

    for action in parser._actions:  # pyright: ignore[reportPrivateUsage]  # no other way
        found: Any = None
        if (name, action.dest) in ASKED:
            found = _lines_of(ASKED[name, action.dest])
        elif action.metavar == "DIR":
            found = shtab.DIRECTORY
        elif action.metavar == "FILE" or action.type is Path:
            found = shtab.FILE
        if found is not None:
            vars(action)["complete"] = found


def _lines_of(words: str) -> dict[str, str | dict[str, str]]:
    """Return how each shell asks ``pie`` for values, at the moment when they are needed.

    A substitution in the script itself would be made by zsh when it reads the script.
    """
    command = f"pie {words} 2>/dev/null"
    name = f"_pie_{words.replace(' -', '_')}"
    return {
        "bash": name,
        "zsh": name,
        "fish": f"({command})",
        "preamble": {
            "bash": f'{name}() {{ compgen -W "$({command})" -- "$1"; }}',
            "zsh": f'{name}() {{ compadd -- ${{(f)"$({command})"}}; }}',
        },
    }
