"""The script for GPUs, as far as a machine without one can run it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu import parts, run_all

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the script with small shapes on the CPU, and return its exit status."""

    def run(*options: str) -> int:
        fixed = ["--out", str(tmp_path), "--device", "cpu", "--small"]
        monkeypatch.setattr(sys, "argv", ["run_all", *fixed, *options])
        with pytest.raises(SystemExit) as ended:
            run_all.main()
        code = ended.value.code
        assert isinstance(code, int)
        return code

    return run


def test_a_part_that_was_done_is_not_done_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--only", "roofline") == 0
    first = (tmp_path / "roofline.json").read_text()
    assert json.loads(first)["rows"][0]["value"] > 0.0
    assert run("--only", "roofline") == 0
    assert (tmp_path / "roofline.json").read_text() == first
    assert "done before" in capsys.readouterr().out
    assert "no figure of a GPU" in (tmp_path / "table.md").read_text()


def test_a_part_that_fails_is_written_down_and_done_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[parts.Row]:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(parts, "roofline", fail)
        assert run("--only", "roofline") == 1
    assert "out of luck" in (tmp_path / "table.md").read_text()
    assert run("--only", "roofline") == 0


def test_speed_is_no_figure_without_its_limit(run: Run, tmp_path: Path) -> None:
    assert run("--only", "engine_speed") == 1
    assert "run the part roofline first" in (tmp_path / "table.md").read_text()
