"""``pie run`` as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.run.setup import default_model
from pie_trio.errors import ConfigError
from tests.cli.conftest import LIMIT_SECONDS, ROOT, Pie

if TYPE_CHECKING:
    from pathlib import Path

EXAMPLE = "examples/text_completion"
HEADER = "from inferlet_py import *\nimport os, sys, time\n\n@inferlet\n"


def write_program(folder: Path, body: str, parameters: str = "") -> Path:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path = folder / "program.py"
    path.write_text(f"{HEADER}async def main({parameters}):\n{lines}")
    return path


def test_the_example_streams_what_the_trained_model_says(
    pie: Pie, trained_model: Path, mode_flags: list[str]
) -> None:
    golden = json.loads((trained_model / "golden.json").read_text())
    for case in golden["cases"][:2]:
        done = pie(
            *("run", "--model", trained_model, *mode_flags, EXAMPLE),
            *("--prompt", case["prompt"], "--max-tokens", 64, "--temperature", 0),
        )
        assert done.code == 0, done.err
        assert done.out.startswith(case["prompt"])
        # The golden text was decoded on its own, which drops a leading space.
        text = done.out.removeprefix(case["prompt"])
        assert text.lstrip(" ") == case["text"] + "\n"


def test_sampling_goes_its_own_way(pie: Pie, random_model: Path) -> None:
    flags = ("--prompt", "x", "--temperature", 1.5)
    outputs = {
        pie("run", "--model", random_model, EXAMPLE, *flags).out for _ in range(2)
    }
    assert len(outputs) == 2


def test_results_messages_and_logs_go_where_they_belong(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(
        tmp_path,
        "print('printed')\nlog('logged')\nawait send('sent')\nreturn {'n': n}",
        "n: int = 3",
    )
    done = pie("run", "--model", random_model, *mode_flags, program, "--n", 4)
    assert done.code == 0, done.err
    assert done.out == 'sent\n{"n": 4}\n'
    assert done.err.splitlines()[-2:] == ["printed", "[info] logged"]


def test_help_after_the_program_is_the_programs(
    pie: Pie, random_model: Path, mode_flags: list[str]
) -> None:
    done = pie("run", "--model", random_model, *mode_flags, EXAMPLE, "--help")
    assert done.code == 0
    assert "Continue a prompt." in done.out
    assert "--max-tokens INT" in done.out
    assert "Most tokens to generate. (default: 64)" in done.out


def test_help_needs_no_model(pie: Pie, tmp_path: Path, mode_flags: list[str]) -> None:
    flags = ("--model", tmp_path / "none", *mode_flags)
    done = pie("run", *flags, EXAMPLE, "--help")
    assert done.code == 0, done.err
    assert "--max-tokens INT" in done.out


@pytest.mark.parametrize("end", ["return 1", "1 / 0"])
def test_what_a_module_prints_is_printed_once_and_before_its_error(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str], end: str
) -> None:
    program = write_program(tmp_path, f"print('running')\n{end}")
    program.write_text("print('imported')\n" + program.read_text())
    done = pie("run", "--model", random_model, *mode_flags, program)
    lines = done.err.splitlines()
    assert [line for line in lines if "ing" in line or "ed" in line][:2] == [
        "imported",
        "running",
    ]
    assert lines.count("imported") == 1


def test_what_a_broken_module_prints_is_printed(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text("print('imported')\n1 / 0\n")
    done = pie("run", "--model", random_model, *mode_flags, program)
    assert done.code == 1
    assert done.err.splitlines()[0] == "imported"
    assert done.err.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_every_line_of_a_log_is_printed(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    program = write_program(tmp_path, "for n in range(5000): print(n)")
    done = pie("run", "--model", random_model, program)
    assert done.err.splitlines() == [str(n) for n in range(5000)]


def test_output_is_utf8_wherever_it_goes(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, "await send('é')\nreturn 'ü'")
    flags = ("--model", random_model, *mode_flags)
    done = pie("run", *flags, program, PYTHONIOENCODING="ascii")
    assert done.code == 0, done.err
    assert done.out == "é\nü\n"


@pytest.mark.parametrize("body", ["while True: pass", "await sleep(1e6)"])
def test_a_native_program_has_a_time_limit(
    pie: Pie, random_model: Path, tmp_path: Path, body: str
) -> None:
    program = write_program(tmp_path, body)
    done = pie("run", "--native", "--timeout", 0.5, "--model", random_model, program)
    assert done.code == 1
    assert done.err == "pie: the program ran for 0.5 s, which is its limit\n"


def test_a_program_may_be_called_like_a_module_of_python(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(tmp_path, "return 1").rename(tmp_path / "random.py")
    done = pie("run", *mode_flags, "--model", random_model, program)
    assert done.code == 0, done.err
    assert done.out == "1\n"


def test_a_zip_and_a_folder_run(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_program(folder, "import other\nreturn other.VALUE").rename(folder / "app.py")
    (folder / "other.py").write_text("VALUE = 7\n")
    with zipfile.ZipFile(tmp_path / "program.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    for program in (folder, tmp_path / "program.zip"):
        done = pie("run", *mode_flags, "--model", random_model, program)
        assert done.code == 0, done.err
        assert done.out == "7\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--n", "x"], "argument --n: invalid integer value: 'x'"),
        (["--n", "1", "--m", "1"], "unrecognized arguments: --m 1"),
        ([], "the following arguments are required: --n"),
        (["--n", "1", "--kind", "c"], "invalid choice: 'c'"),
    ],
)
def test_wrong_arguments_are_usage_errors(
    pie: Pie, random_model: Path, tmp_path: Path, flags: list[str], message: str
) -> None:
    program = write_program(
        tmp_path,
        "return n",
        'n: int, kind: __import__("typing").Literal["a", "b"] = "a"',
    )
    done = pie("run", "--model", random_model, program, *flags)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_an_argument_of_the_program_before_it_is_told_where_it_belongs(
    pie: Pie, tmp_path: Path
) -> None:
    done = pie("run", "--n=1", write_program(tmp_path, "return n", "n: int"))
    assert done.code == 2
    assert "unrecognized arguments: --n=1: the program's own stand after it" in done.err


def test_without_a_program_only_the_program_is_missing(pie: Pie) -> None:
    done = pie("run")
    assert done.code == 2
    assert done.err.endswith("the following arguments are required: program\n")


def test_every_type_of_argument_arrives(
    pie: Pie, random_model: Path, tmp_path: Path, mode_flags: list[str]
) -> None:
    program = write_program(
        tmp_path,
        "return [a, b, c, d, e, f]",
        "a: str, b: float, c: bool, d: list[int], e: dict[str, int], f: int | None = None",
    )
    done = pie(
        *("run", "--model", random_model, *mode_flags, program, "--a", "é x", "--b", 2),
        *("--no-c", "--d", 1, 2, "--e", '{"k": 5}', "--f", 6),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out) == ["é x", 2.0, False, [1, 2], {"k": 5}, 6]


FAILURES = [
    ("1 / 0", 1, "ZeroDivisionError: division by zero"),
    ("sys.exit(3)", 1, "SystemExit: 3"),
    ("def f(): return f()\nf()", 1, "RecursionError"),
    ("await Event().wait()", 1, "all tasks are blocked"),
    ("return {1}", 1, "which JSON cannot carry"),
    ("await send(1)", 1, "send() takes text or bytes, got int"),
]
WASM_FAILURES = [
    ("open('/etc/passwd')", 1, "FileNotFoundError"),
    ("import socket; socket.socket()", 1, "PermissionError"),
    ("os._exit(0)", 1, "pie: the program ended its interpreter"),
    ("x = []\nwhile True: x.append(bytearray(10 << 20))", 1, "MemoryError"),
    ("while True: pass", 1, "pie: the program ran for 1 s, which is its limit"),
    ("time.sleep(1e6)", 1, "pie: the program ran for 1 s, which is its limit"),
]


@pytest.mark.parametrize(("body", "code", "message"), FAILURES)
def test_a_failing_program_ends_in_one_clear_message(
    pie: Pie,
    random_model: Path,
    tmp_path: Path,
    mode_flags: list[str],
    body: str,
    code: int,
    message: str,
) -> None:
    program = write_program(tmp_path, body)
    done = pie("run", "--model", random_model, *mode_flags, program)
    assert done.code == code
    assert message in done.err
    assert "pie_trio" not in done.err
    assert "_kernel" not in done.err


@pytest.mark.parametrize(("body", "code", "message"), WASM_FAILURES)
def test_the_sandbox_ends_what_the_author_does_not(
    pie: Pie, random_model: Path, tmp_path: Path, body: str, code: int, message: str
) -> None:
    program = write_program(tmp_path, body)
    done = pie("run", "--model", random_model, "--timeout", 1, program)
    assert done.code == code
    assert message in done.err
    assert "pie_trio" not in done.err


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("async def main(:", 1, "SyntaxError"),
        ("x = 1", 1, "has no inferlet: put @inferlet above"),
        (None, 2, "there is no program at"),
    ],
)
def test_a_bad_program_says_what_was_expected(
    pie: Pie,
    random_model: Path,
    tmp_path: Path,
    mode_flags: list[str],
    text: str | None,
    code: int,
    message: str,
) -> None:
    path = tmp_path / "program.py"
    if text is not None:
        path.write_text(text)
    done = pie("run", "--model", random_model, *mode_flags, path)
    assert done.code == code
    assert message in done.err
    assert "pie_trio" not in done.err


def test_without_a_model_it_takes_the_one_that_comes_with_pie(
    pie: Pie, torch_is_there: None, mode_flags: list[str]
) -> None:
    prompt = "Once upon a time"
    done = pie("run", *mode_flags, EXAMPLE, "--prompt", prompt, "--max-tokens", 16)
    assert done.code == 0, done.err
    assert done.out.startswith(prompt)
    assert len(done.out) > len(prompt) + 16


def test_without_any_model_it_says_what_to_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIE_MODEL", raising=False)
    with pytest.raises(ConfigError, match="pass --model DIR"):
        default_model(tmp_path)


def test_a_bad_model_directory_says_what_was_expected(
    pie: Pie, torch_is_there: None, tmp_path: Path
) -> None:
    done = pie("run", "--model", tmp_path, EXAMPLE)
    assert done.code == 2
    assert "config.json" in done.err
    done = pie("run", "--model", f"a={tmp_path}", "--model", f"a={tmp_path}", EXAMPLE)
    assert done.code == 2
    assert "two models are called a" in done.err


def test_several_models_are_chosen_by_name(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    program = write_program(
        tmp_path,
        "async with Context('two') as c:\n    return [available_models(), c.model.name]",
    )
    done = pie(
        *("run", "--model", f"one={random_model}", "--model", f"two={random_model}"),
        *("--kv-pages", 8, program),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out) == [["one", "two"], "two"]


def test_too_small_a_cache_is_an_error_of_the_program(
    pie: Pie, random_model: Path
) -> None:
    done = pie("run", "--model", random_model, "--kv-pages", 1, EXAMPLE)
    assert done.code == 1
    assert "KV pages" in done.err


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize(
    "body", ["while True: pass", "time.sleep(1e6)", "await sleep(1e6)"]
)
def test_a_signal_ends_a_program_wherever_it_stands(
    random_model: Path,
    tmp_path: Path,
    number: signal.Signals,
    code: int,
    word: str,
    body: str,
) -> None:
    program = write_program(tmp_path, f"await send('ready\\n')\n{body}")
    process = subprocess.Popen(
        [sys.executable, "-m", "pie_trio", "run", "--model", random_model, program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        error = process.stderr.read()
        assert process.wait(LIMIT_SECONDS) == code
    assert error.splitlines()[-1] == f"pie: {word}"
    assert "Traceback" not in error


def test_ctrl_c_ends_a_native_program(random_model: Path, tmp_path: Path) -> None:
    program = write_program(tmp_path, "await send('ready\\n')\nawait sleep(1e6)")
    command = [sys.executable, "-m", "pie_trio", "run", "--native"]
    process = subprocess.Popen(
        [*command, "--model", random_model, program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        error = process.stderr.read()
        assert process.wait(LIMIT_SECONDS) == 130
    assert error.splitlines()[-1] == "pie: interrupted"


def test_a_reader_that_leaves_ends_the_program_quietly(
    random_model: Path, tmp_path: Path
) -> None:
    program = write_program(tmp_path, "while True: await send('line\\n')")
    process = subprocess.Popen(
        [sys.executable, "-m", "pie_trio", "run", "--model", random_model, program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        error = process.stderr.read()
        assert process.wait(LIMIT_SECONDS) == 141
    assert "Traceback" not in error


def test_a_debugger_stops_in_a_native_program(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    program = write_program(tmp_path, "secret = 41\nbreakpoint()\nreturn secret + 1")
    flags = ("run", "--native", "--model", random_model, program)
    done = pie(*flags, stdin=b"p secret\nc\n")
    assert (done.code, done.out) == (0, "42\n"), done.err
    assert "(Pdb) 41" in done.err


def test_policies_are_chosen_by_name(
    pie: Pie, random_model: Path, mode_flags: list[str]
) -> None:
    flags = ("--policy", "k_or_t:2,0.001", "--contention", "fcfs", "--swap-mib", 0)
    done = pie("run", "--model", random_model, *flags, *mode_flags, EXAMPLE)
    assert done.code == 0, done.err
    explained = pie(
        *("run", "--model", random_model, *flags, *mode_flags, "--explain", EXAMPLE)
    )
    assert "k_or_t" in explained.err


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--policy", "fast", "no batching policy 'fast': choose one of rendezvous"),
        ("--policy", "k:0", "a count is 1 or more"),
        ("--contention", "none", "no contention policy 'none': choose one of ladder"),
    ],
)
def test_a_policy_that_is_not_there_is_refused_before_the_model_is_loaded(
    pie: Pie, flag: str, value: str, message: str
) -> None:
    done = pie("run", flag, value, "--model", "nowhere", EXAMPLE)
    assert done.code == 2
    assert message in done.err
