"""`pie new`, `pie check` and `pie build` on the command line, and what the manifest does to runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Pie

APP = """
from inferlet_py import inferlet, debug_query, http_get

@inferlet
async def main(count: int = 3) -> int:
    \"\"\"Count.\"\"\"
    {body}
    return count
"""


def write(folder: Path, body: str = "", manifest: str = "") -> Path:
    (folder / "app.py").write_text(APP.format(body=body or "pass"))
    (folder / "pyproject.toml").write_text(f"[tool.pie]\n{manifest}")
    return folder


@pytest.mark.parametrize("command", ["new", "check", "build"])
def test_help_has_an_example(pie: Pie, command: str) -> None:
    done = pie(command, "--help")
    assert done.code == 0
    assert f"Example: pie {command}" in " ".join(done.out.split())


def test_a_new_project_passes_its_check(pie: Pie, tmp_path: Path) -> None:
    done = pie("new", tmp_path / "poet")
    assert done.code == 0
    assert str(tmp_path / "poet" / "app.py") in done.out
    done = pie("check", tmp_path / "poet")
    assert (done.code, done.out) == (0, "")
    done = pie("new", tmp_path / "poet")
    assert done.code == 2
    assert "choose another name" in done.err


def test_findings_are_told_by_file_and_line(pie: Pie, tmp_path: Path) -> None:
    done = pie("check", write(tmp_path, body="open('x')"))
    assert done.code == 1
    assert done.out.startswith("app.py:7: error: open fails, since there are no files")
    assert "1 of these would fail" in done.err


def test_the_schema_is_printed(pie: Pie, tmp_path: Path) -> None:
    done = pie("check", "--schema", write(tmp_path))
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["arguments"]["properties"] == {
        "count": {"type": "integer", "default": 3}
    }
    assert found["result"] == {"type": "integer"}
    assert found["documentation"] == "Count."


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("entri = 'app.py'", "has no key 'entri': did you mean 'entry'?"),
        (
            "[tool.pie.limits]\npages = 'x'",
            "[tool.pie.limits] pages: expected a number",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "check", "build"])
def test_a_wrong_manifest_is_told(
    pie: Pie, tmp_path: Path, command: str, manifest: str, message: str
) -> None:
    done = pie(command, write(tmp_path, manifest=manifest))
    assert done.code == 2
    assert message in done.err


def test_grants_and_limits_of_the_manifest_count(
    pie: Pie, tmp_path: Path, mode_flags: list[str], torch_is_there: None
) -> None:
    manifest = "[tool.pie.grants]\nhttp = []\n[tool.pie.limits]\npages = 7\nwall_seconds = 60\n"
    body = 'print(debug_query("limits")["max_pages"])'
    done = pie("run", *mode_flags, write(tmp_path, body=body, manifest=manifest))
    assert done.code == 0, done.err
    assert done.out == "3\n"
    assert "7\n" in done.err


def test_a_result_of_another_type_is_told(
    pie: Pie, tmp_path: Path, mode_flags: list[str], torch_is_there: None
) -> None:
    done = pie("run", *mode_flags, write(tmp_path, body="return 'x'"))
    assert done.code == 1
    assert 'WrongResultError: the program\'s result: expected int, got "x"' in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--native", "x.wasm"], "has no Python to run natively"),
        (["run", "--watch", "x.wasm"], "--watch needs the source"),
        (["run", "--watch", "--native", "app.py"], "--watch runs in the sandbox"),
        (["run", "x.wasm"], "there is no program at x.wasm: `pie build` makes one"),
        (["check", "x.wasm"], "is built already"),
        (["build", "x.wasm"], "is built already"),
        (
            ["build", "examples/text_completion", "-o", "no/such/x.wasm"],
            "name a file in a folder that is there",
        ),
    ],
)
def test_what_does_not_go_together_is_told(
    pie: Pie, arguments: list[str], message: str
) -> None:
    done = pie(*arguments)
    assert done.code == 2
    assert message in done.err
