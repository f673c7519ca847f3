"""What a benchmark leaves behind, and what is read of it again."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest

from benchmarks import reporting
from benchmarks._loading import latest, load
from benchmarks.reporting import find, save, table
from tests.benchmarks.reports import make_report

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("torch_is_there")  # its version is kept


def test_a_table_has_a_line_for_each_series_and_ratios_to_the_base() -> None:
    assert table(make_report()) == [
        "| at once |  | speed, runs/s | Pie / it | tokens | Pie / it |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 1 | Pie | 4 [4-4] |  | 1,234 [1,234-1,234] |  |",
        "| 8 | Pie | 6 [6-6] |  | 1,234 [1,234-1,234] |  |",
        "| 1 | other | 2 [2-2] | 2 [2-2] | 1,234 [1,234-1,234] | 1 [1-1] |",
        "| 8 | other | 8 [8-8] | 0.75 [0.75-0.75] | 1,234 [1,234-1,234] | 1 [1-1] |",
    ]


def test_a_metric_that_a_series_lacks_is_left_empty() -> None:
    report = make_report()
    del report.series[0].samples["speed"], report.series[3].samples["speed"]
    lines = table(report)
    assert lines[2].startswith("| 1 | Pie |  |  | 1,234")
    assert lines[4].startswith("| 1 | other | 2 [2-2] |  | 1,234"), "nothing to compare"


def test_a_division_by_nothing_is_no_ratio() -> None:
    report = make_report()
    report.series[2].samples["speed"] = [0.0, 2.0]
    assert table(report)[4].startswith("| 1 | other | 1 [0-2] |  |")


def test_a_series_is_found_by_its_point_and_side() -> None:
    report = make_report()
    assert find(report.series, {"at once": 8}, "other") is report.series[3]
    assert find(report.series, {"at once": 9}, "other") is None
    assert find(report.series, {"at once": 8}, "nobody") is None


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    report = make_report()
    assert save(report, "race-small", tmp_path) == tmp_path
    kept = load(tmp_path / "race-small.json")
    assert asdict(kept.report) | {"metrics": ()} == asdict(report) | {"metrics": ()}
    assert list(kept.report.metrics) == list(report.metrics)
    assert (kept.name, kept.benchmark) == ("race-small", "race")
    assert all((kept.date, kept.machine, kept.commit))
    assert kept.command.startswith("python -m benchmarks.run")


def test_an_entry_for_the_log_tells_who_else_was_there(tmp_path: Path) -> None:
    save(make_report(), "race", tmp_path)
    entry = (tmp_path / "race.md").read_text()
    assert entry.startswith("## 20")
    assert ": a race\n" in entry
    assert "Cores that others used: 0.25, at most 0.50." in entry
    assert "Medians of 2 rounds in turn" in entry
    assert "Settings: dtype bfloat16." in entry
    assert "It was short." in entry


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed"
)
def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    save(make_report(), "race", tmp_path)
    assert (tmp_path / "race.png").read_bytes().startswith(b"\x89PNG")


def test_a_command_tells_no_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["run", "agents", "--model", "/home/me/models/small", "--agents", "a b"]
    monkeypatch.setattr("sys.argv", words)
    command = "python -m benchmarks.run agents --model small --agents 'a b'"
    assert reporting._command() == command


def test_of_each_name_the_newest_result_counts(tmp_path: Path) -> None:
    for date, name in (
        ("2026-01-01", "a"),
        ("2026-01-02", "a"),
        ("2026-01-01", "b-small"),
    ):
        save(make_report(), name, tmp_path / date)
    (tmp_path / "2026-01-03").mkdir()
    (tmp_path / "2026-01-03" / "soak.json").write_text("{}")
    found = latest(["a", "b"], tmp_path)
    assert [(kept.name, kept.folder.name) for kept in found] == [
        ("a", "2026-01-02"),
        ("b-small", "2026-01-01"),
    ]


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is no result of a benchmark"):
        load(path)
