"""``pie serve`` as a process, and the commands that talk to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.conftest import LIMIT_SECONDS, ROOT, Done, Pie, run_from_the_start
from tests.cli.test_signals import started

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

HEADER = "from inferlet_py import *\n\n@inferlet\nasync def main({parameters}):\n"


def write(folder: Path, name: str, body: str, parameters: str = "") -> Path:
    path = folder / f"{name}.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(HEADER.format(parameters=parameters) + lines)
    return path


@contextmanager
def serving(
    data: Path, *flags: object
) -> Generator[tuple[subprocess.Popen[str], str, Any]]:
    """Run a server with pie-tiny, and wait until it serves."""
    arguments = ("serve", "--port", 0, "--data-dir", data, "--warm", 0, *flags)
    with started(*arguments, PIE_MODEL="") as (process, stdout, stderr):
        url = stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:"), stderr.read()
        yield process, url, stderr


@pytest.fixture(scope="module")
def server(
    torch_is_there: None, tmp_path_factory: pytest.TempPathFactory
) -> Generator[str]:
    """The URL of a server with pie-tiny."""
    with serving(tmp_path_factory.mktemp("server")) as (_, url, _):
        yield url


def ask(url: str, *arguments: object) -> Done:
    """Run a command against a server. It imports little: a new process is the fastest."""
    return run_from_the_start([*map(str, arguments)], {**os.environ, "PIE_SERVER": url})


@pytest.fixture
def against(server: str) -> Callable[..., Done]:
    """Runs commands against the server."""
    return partial(ask, server)


def test_a_program_is_deployed_and_run_with_the_model(
    against: Callable[..., Done], pie: Pie
) -> None:
    example = ROOT / "examples/text_completion"
    done = against("deploy", example)
    assert done.code == 0, done.err
    assert done.out.startswith("text_completion: created")
    assert "is as it was" in against("deploy", example).out
    arguments = ("--prompt", "The old dog", "--max-tokens", 8, "--temperature", 0)
    launched = against("launch", "text_completion", *arguments)
    assert launched.code == 0, launched.err
    assert launched.out == pie("run", example, *arguments).out
    events = [
        json.loads(line)
        for line in against(
            "launch", "--json", "text_completion", *arguments
        ).out.splitlines()
    ]
    assert (events[0]["event"], events[-1]["event"]) == ("started", "end")
    assert events[-1]["tokens_sampled"] >= 1
    text = "".join(e["text"] for e in events if e["event"] == "message")
    assert text.strip() == launched.out.strip()


def test_a_chat_on_a_server_is_the_one_with_an_engine_of_its_own(server: str) -> None:
    def chat(*flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pie_trio", "chat", "--max-tokens", "12", *flags],
            cwd=ROOT,
            env={**os.environ, "PIE_MODEL": ""},
            input="Hello\nTell me a story.\n",
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    there = chat("--server", server)
    assert there.returncode == 0, there.stderr
    assert len(there.stdout.splitlines()) == 2
    assert there.stdout == chat().stdout
    refused = chat("--server", server, "--model", "somewhere")
    assert refused.returncode == 2
    assert "--model is for an engine of its own" in refused.stderr


def test_launch_takes_the_arguments_that_the_program_has(
    against: Callable[..., Done], tmp_path: Path
) -> None:
    against("deploy", write(tmp_path, "typed", "return count + 1", "count: int"))
    assert against("launch", "typed", "--count", 2).out == "3\n"
    usage = against("launch", "typed", "--help")
    assert usage.out.startswith("usage: pie launch typed [-h] --count INT")
    wrong = against("launch", "typed", "--count", "x")
    assert wrong.code == 2
    assert "invalid integer value" in wrong.err


def test_a_failure_on_the_server_looks_as_one_here(
    against: Callable[..., Done], pie: Pie, tmp_path: Path
) -> None:
    program = write(tmp_path, "failing", "print('a line')\nawait send('x')\n1 / 0")
    against("deploy", program)
    there, here = against("launch", "failing"), pie("run", program)
    assert (there.code, there.out) == (here.code, here.out) == (1, "x\n")
    assert there.err == here.err


def test_a_syntax_error_is_told_at_the_deployment(
    against: Callable[..., Done], tmp_path: Path
) -> None:
    program = tmp_path / "wrong.py"
    program.write_text("x = (\n")
    done = against("deploy", program)
    assert done.code == 1
    assert 'File "wrong.py", line 1' in done.err
    assert "wrong" not in against("programs").out


def test_a_detached_instance_is_listed_logged_and_killed(
    against: Callable[..., Done], tmp_path: Path
) -> None:
    body = "print('a line')\nawait receive()"
    against("deploy", write(tmp_path, "waiting", body))
    name = against("launch", "--detach", "waiting").out.strip()
    listed = json.loads(against("ps", "--json").out)
    (found,) = (one for one in listed if one["id"] == name)
    assert (found["state"], found["detached"]) == ("running", True)
    assert name in against("ps").out
    assert against("kill", name).out == f"{name}: cancelled\n"
    assert against("logs", name).out == "a line\n"
    assert against("logs", "--follow", name).out == "a line\n"
    assert name not in against("ps").out
    assert name in against("ps", "--all").out


def test_lines_of_stdin_are_messages(
    against: Callable[..., Done], server: str, tmp_path: Path
) -> None:
    body = "async for message in messages(): await send(f'<{message}>')"
    against("deploy", write(tmp_path, "echo", body))
    done = subprocess.run(
        [sys.executable, "-m", "pie_trio", "launch", "--server", server, "echo"],
        cwd=ROOT,
        input="one\ntwo\n",
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=True,
    )
    assert done.stdout == "<one><two>\n"


def test_programs_are_listed_and_removed(
    against: Callable[..., Done], tmp_path: Path
) -> None:
    path = write(tmp_path, "gone", "pass")
    against("deploy", path, "--name", "other")
    assert "other" in against("programs").out
    listed = json.loads(against("programs", "--json").out)
    assert "other" in [one["name"] for one in listed]
    assert against("undeploy", "other").out == "other: removed\n"
    again = against("undeploy", "other")
    assert again.code == 1
    assert "there is no program 'other'" in again.err
    missing = against("launch", "other")
    assert missing.code == 1
    assert "there is no program 'other'" in missing.err


@pytest.mark.parametrize(
    "arguments", [("ps",), ("launch", "x"), ("logs", "x"), ("kill", "x"), ("programs",)]
)
def test_no_server_is_a_message(arguments: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    done = ask(f"http://127.0.0.1:{port}", *arguments)
    assert done.code == 2
    assert f"no server answers at http://127.0.0.1:{port}" in done.err
    assert "pie serve" in done.err


@pytest.mark.parametrize(
    "url", ["ftp://x", "localhost:8000", "http://x/y", "http://:x"]
)
def test_what_is_no_url_is_a_message(url: str) -> None:
    done = ask("", "ps", "--server", url)
    assert done.code == 2
    assert "is no server: expected http://" in done.err


def test_a_server_that_is_none_of_ours_is_a_message() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, answering(other):
        port = other.getsockname()[1]
        done = ask(f"http://127.0.0.1:{port}", "ps")
    assert done.code == 1
    assert "does not answer as Pie does" in done.err


@contextmanager
def answering(listener: socket.socket) -> Generator[None]:
    """Answer one request with something that is no JSON."""

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    yield
    thread.join(LIMIT_SECONDS)


def test_the_first_signal_drains_and_a_restart_knows_the_programs(
    torch_is_there: None, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    body = "await send('ready\\n')\nawait sleep(3600)"
    with serving(data, "--grace", 0.5) as (process, url, stderr):
        banner = [stderr.readline() for _ in range(3)]
        assert "pie-tiny" in banner[1]
        assert "KV pages" in banner[1]
        assert f"on {url}; keys are off" in banner[2]
        ask(url, "deploy", write(tmp_path, "waits", body))
        with started("launch", "waits", PIE_SERVER=url) as (_, stdout, launch_stderr):
            assert stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert "1 running have 0.5 s to end" in stderr.readline()
            assert launch_stderr.read() == "pie: the server stops\n"
        assert process.wait(LIMIT_SECONDS) == 0
        assert stderr.read() == ""
    with serving(data) as (process, url, _):
        assert "waits" in ask(url, "programs").out
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_SECONDS) == 0


def test_a_second_signal_ends_it_at_once(torch_is_there: None, tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--grace", 3600) as (process, url, stderr):
        ask(url, "deploy", write(tmp_path, "waits", "await receive()"))
        ask(url, "launch", "--detach", "waits")
        process.send_signal(signal.SIGTERM)
        while "stopping" not in stderr.readline():
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_SECONDS) == 143
        assert stderr.read() == "pie: terminated\n"


def test_one_data_directory_and_one_port_are_for_one_server(
    server: str, pie: Pie, tmp_path: Path
) -> None:
    port = server.rpartition(":")[2]
    done = pie("serve", "--port", port, "--data-dir", tmp_path)
    assert done.code == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.err
    assert "is a server running already?" in done.err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--port", "99999"], "cannot listen on"),
        (["--port", "x"], "expected a number"),
        (["--host", "no such host"], "cannot listen on"),
        (["--grace", "-1"], "expected a positive number"),
        (["--max-instances", "0"], "takes 1 or more"),
        (["--policy", "nothing"], "nothing"),
        (["--model", "/nowhere"], "/nowhere"),
        (["--data-dir", "/dev/null/x"], "/dev/null/x"),
        (["--allow-http", "http://"], "http://"),
    ],
)
def test_bad_options_are_messages(
    torch_is_there: None, pie: Pie, tmp_path: Path, flags: list[str], words: str
) -> None:
    base = ["--port", "0", "--data-dir", str(tmp_path)]
    done = pie("serve", *base, *flags)
    assert done.code == 2, done.err
    assert words in done.err
    assert "Traceback" not in done.err


def test_a_unix_socket_serves_too(torch_is_there: None, tmp_path: Path) -> None:
    path = tmp_path / "pie.sock"
    flags = ("--data-dir", tmp_path / "data", "--warm", 0, "--uds", path)
    with started("serve", *flags, PIE_MODEL="") as (process, _, stderr):
        while "keys are off" not in stderr.readline():
            pass
        assert ask("", "ps", "--server", f"unix:{path}").code == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_SECONDS) == 0
    assert not path.exists()
