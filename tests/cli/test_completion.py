"""Completion of commands, asked of the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from pie_trio.cli import main
from pie_trio.cli.completion import SHELLS

if TYPE_CHECKING:
    from pathlib import Path

ASKED = {
    "bash": """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _shtab_pie; printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "fish": "source $argv[1]; complete -C (string join ' ' -- $argv[2..])",
}


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    """The name of a shell that is there."""
    name = str(request.param)
    if shutil.which(name) is None:
        pytest.skip(f"there is no {name} on this machine")
    return name


@pytest.fixture
def folder(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """With a shell's ``script``, and a ``pie`` that knows two names and notes who asks."""
    assert main(["completion", shell]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    fake = tmp_path / "pie"
    fake.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho agent\necho other\n'
    )
    fake.chmod(0o755)
    return tmp_path


def run(shell: str, folder: Path, script: str, *words: str) -> list[str]:
    """Run a shell's own script in the folder; return its lines, without descriptions."""
    flags = {"bash": ["--norc"], "fish": ["--no-config"], "zsh": ["-f"]}[shell]
    after = [] if shell == "fish" else [shell]  # others call the first word $0
    done = subprocess.run(
        [shell, *flags, "-c", script, *after, "script", *words],
        cwd=folder,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not done.stderr, done.stderr
    return [line.partition("\t")[0].strip() for line in done.stdout.splitlines()]


def complete(shell: str, folder: Path, *words: str) -> list[str]:
    """Return what a shell offers for the last word."""
    if shell == "zsh":
        pytest.skip("zsh completes at its prompt alone")
    return run(shell, folder, ASKED[shell], "pie", *words)


def test_each_shell_reads_its_script_and_asks_nobody(shell: str, folder: Path) -> None:
    stub = "compdef() { :; }; " if shell == "zsh" else ""
    assert run(shell, folder, f'{stub}eval "$(cat script)"') == []
    assert not (folder / "asked").exists()


def test_commands_options_and_choices_are_offered(shell: str, folder: Path) -> None:
    assert complete(shell, folder, "ser") == ["serve"]
    assert {"add", "list", "revoke"} <= {*complete(shell, folder, "keys", "")}
    assert set(complete(shell, folder, "serve", "--tls-")) == {
        *("--tls-cert", "--tls-key")
    }
    choices = complete(shell, folder, "serve", "--dtype", "")
    assert choices == ["float32", "bfloat16", "auto"]


def test_files_are_offered_where_one_is_asked_for(shell: str, folder: Path) -> None:
    (folder / "agent").mkdir()
    (folder / "agent.py").touch()
    found = complete(shell, folder, "serve", "--config", "ag")
    assert {name.rstrip("/") for name in found} == {"agent", "agent.py"}
    found = complete(shell, folder, "serve", "--data-dir", "ag")
    assert [name.rstrip("/") for name in found] == ["agent"]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("launch", "ag"), "programs -q"),
        (("undeploy", "ag"), "programs -q"),
        (("logs", "ag"), "ps -aq"),
        (("kill", "ag"), "ps -q"),
    ],
)
def test_names_are_asked_of_the_server(
    shell: str, folder: Path, words: tuple[str, ...], asked: str
) -> None:
    assert complete(shell, folder, *words) == ["agent"]
    assert set((folder / "asked").read_text().splitlines()) == {asked}


def test_zsh_asks_for_names_when_it_needs_them(shell: str, folder: Path) -> None:
    if shell != "zsh":
        pytest.skip("others are asked for completions")
    stubs = "compdef() { :; }; compadd() { print -rl -- $@; }; "
    script = f'{stubs}eval "$(<script)"; _pie_programs_q'
    assert run(shell, folder, script) == ["--", "agent", "other"]
    names = run(
        shell,
        folder,
        f'{stubs}eval "$(<script)"; print -rl -- $_shtab_pie_launch_options',
    )
    assert any(line.endswith(":_pie_programs_q") for line in names), names


def test_a_shell_that_is_not_known_is_a_message(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["completion", "csh"])
    assert "bash" in capsys.readouterr().err
