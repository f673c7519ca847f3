"""The parser: commands, usage errors, exit codes."""

from __future__ import annotations

import pytest

from pie_trio import __version__
from pie_trio.cli import main


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"pie {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["rum"], "invalid choice: 'rum'"),
        (["run"], "the following arguments are required: program"),
        (["run", "--kv-pages", "-1", "x"], "expected 0 or more, got -1"),
        (["run", "--kv-pages", "x", "x"], "argument --kv-pages: expected a number"),
        (["run", "--dtype", "int3", "x"], "invalid choice: 'int3'"),
        (["run", "--timeout", "0", "x"], "argument --timeout: expected a positive"),
        (["run", "--timeout", "nan", "x"], "argument --timeout: expected a positive"),
        (["run", "--timeout", "inf", "x"], "argument --timeout: expected a positive"),
        (["run", "--timeout", "a", "x"], "argument --timeout: expected a positive"),
        (["run", "--memory", "63", "x"], "argument --memory: expected 64 to 4096"),
    ],
)
def test_a_usage_error_names_the_flag(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--memory", "--warm"])
def test_what_only_the_sandbox_has_is_refused_natively(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert main(["run", "--native", flag, "64", "x"]) == 2
    assert f"pie: {flag} is of the sandbox" in capsys.readouterr().err
