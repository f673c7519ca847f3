"""The magic %%inferlet and @inferlet, in a real IPython shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from pie_trio.client.notebook import CellFailedError
from tests.client.conftest import in_thread, url_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.application.server.conftest import OpenServer

GREET = """%%inferlet greet --name ann
from inferlet_py import inferlet, send

@inferlet
async def main(name: str, count: int = 1) -> int:
    print("a line")
    await send(f"hello {name}\\n" * count)
    return count
"""
DECORATED = """
import pie_trio.client
from inferlet_py import send
from dataclasses import dataclass

MARK = "!"

@dataclass
class Answer:
    text: str

def loud(text):
    return text.upper() + MARK

@pie_trio.client.inferlet
async def shout(text: str) -> Answer:
    return Answer(loud(text))

found = shout("hi")
"""


@pytest.fixture
def shell(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Generator[InteractiveShell]:
    """A shell with the magic."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
    found: Any = InteractiveShell.instance(colors="nocolor")
    found.history_manager.enabled = False
    found.run_line_magic("load_ext", "pie_trio.client.notebook")
    yield found
    found.history_manager.end_session()
    InteractiveShell.clear_instance()


async def run(shell: Any, text: str) -> Any:
    return await in_thread(lambda: shell.run_cell(text, store_history=False))


async def test_a_cell_is_deployed_and_run(
    open_server: OpenServer,
    shell: InteractiveShell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with open_server() as served:
        monkeypatch.setenv("PIE_SERVER", url_of(served))
        done = await run(shell, GREET)
        assert done.success, done.error_in_exec
        assert done.result == 1
        printed = capsys.readouterr()
        assert printed.out.startswith("hello ann\n")
        assert printed.err == "a line\n"
        assert [row.name for row in served.programs.rows(served.owner)] == ["greet"]
        again = await run(shell, GREET.replace("--name ann", "--name 'a b' --count 2"))
        assert again.result == 2
        assert capsys.readouterr().out.startswith("hello a b\nhello a b\n")


async def test_a_failure_shows_the_lines_of_the_cell(
    open_server: OpenServer, shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_server() as served:
        head = f"%%inferlet --server {url_of(served)} bad\n"
        text = "from inferlet_py import inferlet\n@inferlet\nasync def main():\n    1 / 0\n"
        done = await run(shell, head + text)
        assert isinstance(done.error_in_exec, CellFailedError)
        shown = capsys.readouterr()
        assert 'File "app.py", line 5' in shown.out + shown.err
        assert "1 / 0" in shown.out + shown.err
        assert "blocking.py" not in shown.out + shown.err
        wrong = await run(shell, head + "x = (\n")
        assert not wrong.success
        shown = capsys.readouterr()
        assert "SyntaxError" in shown.out + shown.err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("%%inferlet\nx", "usage: %%inferlet"),
        ("%%inferlet 'x\nx", "No closing quotation"),
        ("%%inferlet --server http://127.0.0.1:9 x\nx", "no server answers"),
        ("%%inferlet --server nonsense x\nx", "is no server"),
    ],
)
async def test_a_wrong_line_is_a_message(
    shell: InteractiveShell,
    capsys: pytest.CaptureFixture[str],
    line: str,
    words: str,
) -> None:
    assert not (await run(shell, line)).success
    shown = capsys.readouterr()
    assert words in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err


async def test_a_wrong_argument_prints_the_usage(
    open_server: OpenServer,
    shell: InteractiveShell,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with open_server() as served:
        monkeypatch.setenv("PIE_SERVER", url_of(served))
        await run(shell, GREET.replace("--name ann", "--count x"))
        assert "invalid integer value" in capsys.readouterr().err
        assert served.registry.list(owner=served.owner) == []


async def test_a_function_of_a_cell_runs_on_the_server(
    open_server: OpenServer, shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server() as served:
        monkeypatch.setenv("PIE_SERVER", url_of(served))
        done = await run(shell, DECORATED)
        assert done.success, done.error_in_exec
        assert shell.user_ns["found"] == {"text": "HI!"}
