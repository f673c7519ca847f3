"""The commands that the documentation shows exist, and take what is shown."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import re
import shlex
from typing import TYPE_CHECKING

import pytest

from inferlet_py._program import find_inferlet
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.run.arguments import parse_program_arguments
from pie_trio.application.run.native_modules import importable
from pie_trio.cli import _make_parser
from tests.docs.blocks import PAGES, ROOT, find_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

ELSEWHERE = {"cd", "curl", "npm", "pip", "printf", "pytest"}
"""Programs that are not ours; what they are told is not looked at."""
ENDS = ("&&", "||", ";", "|", "<", ">")


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the words of each command in a console block, without a prompt."""
    for page in PAGES:
        for block in find_blocks(page, page.read_text(), "console"):
            text = block.text.replace("\\\n", " ")
            for number, line in enumerate(text.splitlines(), block.line):
                if line.startswith("$ "):
                    place = f"{page.relative_to(ROOT)}:{number}"
                    yield from ((place, words) for words in split_commands(line[2:]))


def split_commands(line: str) -> list[list[str]]:
    """Return the commands of a line of a shell, without variables before them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    commands: list[list[str]] = [[]]
    for word in lexer:
        if word in ENDS:
            commands.append([])
        elif commands[-1] or not re.match(r"[A-Z_]+=", word):
            commands[-1].append(word)
    return [words for words in commands if words]


def spoken_commands() -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the words of each ``pie`` command within the prose of a page."""
    for page in PAGES:
        text = re.sub(
            r"^(`{3,})[a-z].*?^\1$",
            lambda match: "\n" * match[0].count("\n"),
            page.read_text(),
            flags=re.M | re.S,
        )
        for match in re.finditer(r"`pie ([^`]+)`", text):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{page.relative_to(ROOT)}:{line}", match[1].split()


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the commands of a parser, by name."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Return the options of a command, and of the commands within it."""
    found = set(parser._option_string_actions)
    return found.union(*(options_of(p) for p in commands_of(parser).values()))


def check_pie(words: list[str]) -> None:
    """Parse a command of ours; the arguments of an example by its own signature."""
    options = _make_parser().parse_args(words)
    path = ROOT / str(getattr(options, "program", ""))
    if words[0] != "run" or not (path / "app.py").exists():
        return
    with importable(load_project(path), path) as module:
        description = find_inferlet(module()).describe()
    parse_program_arguments(description, options.arguments, program=words[-1])


def check_command(words: list[str]) -> None:
    """Check that a command is there, and takes what it is told.

    Raises:
        AssertionError: It is not known.
        SystemExit: It is ours, and does not take this.
    """
    name = words[0].removeprefix(".venv/bin/")
    if name in ("python", "python3") and words[1] == "-m":
        module = words[2]
        assert module in (*ELSEWHERE, "venv") or importlib.util.find_spec(module), words
    elif name == "python":
        assert "/" not in words[1] or (ROOT / words[1]).exists(), words
    elif name == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
        assert words[1] in targets, words
    elif name == "nox":
        session = words[words.index("-s") + 1].partition("-")[0]
        functions = ast.walk(ast.parse((ROOT / "noxfile.py").read_text()))
        assert session in {getattr(node, "name", "") for node in functions}, words
    elif name == "pie":
        check_pie(words[1:])
    else:
        assert name in ELSEWHERE, words


SHOWN, SPOKEN = list(shown_commands()), list(spoken_commands())


def ids_of(commands: list[tuple[str, list[str]]]) -> list[str]:
    return [
        f"{n} {place} {' '.join(words)}" for n, (place, words) in enumerate(commands)
    ]


@pytest.mark.parametrize(("place", "words"), SHOWN, ids=ids_of(SHOWN))
def test_a_command_in_a_block_can_be_given(place: str, words: list[str]) -> None:
    check_command(words)


@pytest.mark.parametrize(("place", "words"), SPOKEN, ids=ids_of(SPOKEN))
def test_a_command_in_the_prose_has_these_options(place: str, words: list[str]) -> None:
    commands = commands_of(_make_parser())
    if words[0].startswith("-"):
        assert words[0] in options_of(_make_parser())
        return
    assert words[0] in commands, f"{place}: there is no command {words[0]}"
    known = options_of(commands[words[0]])
    for word in words[1:]:
        if words[0] in ("run", "launch") and re.search(
            r"\.py$|\.wasm$|^PROGRAM$", word
        ):
            break  # what follows is the program's
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"{place}: there is no {word}"


@pytest.mark.parametrize(
    "line",
    [
        "pie fly",
        "pie run --no-such-option app.py",
        "pie run examples/chat --no-such-argument 1",
        "make coffee",
        ".venv/bin/nox -s coffee",
        "python -m benchmarks.coffee",
        "python docs/coffee.py",
        "coffee --black",
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str) -> None:
    (words,) = split_commands(line)
    with contextlib.redirect_stderr(None), pytest.raises((AssertionError, SystemExit)):
        check_command(words)


def test_a_line_may_have_several_commands_and_variables() -> None:
    line = "A_B=1 make install && pie run x.py --prompt 'a | b' < f # why"
    assert split_commands(line) == [
        ["make", "install"],
        ["pie", "run", "x.py", "--prompt", "a | b"],
        ["f"],
    ]
