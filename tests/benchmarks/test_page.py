"""The page of results: what it says, and that it is made from what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from benchmarks._digest import Goal, check_goal, digest, losses
from benchmarks._layers import draw_layers
from benchmarks._loading import Kept, latest
from benchmarks._sections import SECTIONS
from benchmarks.page import IMAGES, NAMES, PAGE, make_page, make_pictures
from benchmarks.run import BENCHMARKS, SCRIPTS
from tests.benchmarks.reports import make_report

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.reporting import Report


def make_kept(report: Report, folder: Path, name: str = "agents-small") -> Kept:
    about = {
        "date": "2026-01-02",
        "machine": "two cores",
        "commit": "abc",
        "command": "run",
    }
    return Kept(name, folder, report=report, **about)


def test_a_digest_has_a_line_for_each_point() -> None:
    assert digest(make_report()) == [
        "| at once | Pie: speed, runs/s | other: speed, runs/s | Pie: tokens | other: tokens |",
        "| --- | --- | --- | --- | --- |",
        "| 1 | 4 | 2 (2 [2-2]) | 1,234 | 1,234 (1 [1-1]) |",
        "| 8 | 6 | 8 (0.75 [0.75-0.75]) | 1,234 | 1,234 (1 [1-1]) |",
    ]


def test_where_more_is_better_a_smaller_ratio_is_a_loss() -> None:
    assert losses(make_report()) == ["at once 8: speed is 0.75 [0.75-0.75] of other's"]


def test_where_less_is_better_a_larger_ratio_is_a_loss() -> None:
    report = make_report()
    report.metrics = [type(report.metrics[0])("speed", "s", "less")]
    assert losses(report) == ["at once 1: speed is 2 [2-2] of other's"]


def test_what_the_interval_leaves_open_is_no_loss() -> None:
    report = make_report()
    report.series[1].samples["speed"] = [6.0, 10.0]
    assert losses(report) == []


def test_a_goal_is_reached_or_missed_at_each_of_its_points() -> None:
    report = make_report()
    assert check_goal(report, Goal("speed", "other", least=1.3)) == [
        "at once 1: 2 [2-2], reached",
        "at once 8: 0.75 [0.75-0.75], **missed**",
    ]
    goal = Goal("speed", "other", most=0.85, where={"at once": 8})
    assert check_goal(report, goal) == ["at once 8: 0.75 [0.75-0.75], reached"]
    assert str(goal) == "speed at most 0.85 of other's (at once 8)"


def test_the_goal_of_a_side_that_was_not_there_says_nothing() -> None:
    assert check_goal(make_report(), Goal("speed", "nobody", least=1.0)) == []


def test_the_page_says_where_pie_loses_and_why(tmp_path: Path) -> None:
    page = make_page([make_kept(make_report(), tmp_path)])
    section = page.split("\n## ")[1]
    assert "- at once 8: speed is 0.75" in section
    assert "**Why.**" in section
    assert "Rounds: 2; other processes used 0.25 cores, at most 0.50." in section
    report = make_report()
    report.series = report.series[0::2]
    section = make_page([make_kept(report, tmp_path)]).split("\n## ")[1]
    assert "nowhere" in section
    assert "**Why.**" not in section


def test_where_sides_of_pie_are_compared_nobody_loses(tmp_path: Path) -> None:
    report = make_report()
    report.base = "other"
    assert "loses" not in make_page([make_kept(report, tmp_path)])


def test_what_was_not_measured_is_told() -> None:
    assert "Not measured yet: `python -m benchmarks.run agents`" in make_page([])


def test_a_plot_stands_on_the_page_if_there_is_one(tmp_path: Path) -> None:
    kept = make_kept(make_report(), tmp_path)
    assert "![" not in make_page([kept])
    (tmp_path / "agents-small.png").write_bytes(b"a picture")
    assert "![a race](images/benchmarks/agents-small.png)" in make_page([kept])
    assert make_pictures([kept]) == {"agents-small.png": b"a picture"}


def test_layers_of_a_token_are_drawn_to_scale() -> None:
    svg = draw_layers(
        {"one": {"guest": [1.0], "device": [3.0]}, "two": {"guest": [2.0]}}
    )
    shape = "{http://www.w3.org/2000/svg}rect"
    widths = [
        float(rect.attrib["width"])
        for rect in ElementTree.fromstring(svg).iter(shape)
        if rect.attrib.get("height") == "22"
    ]
    assert widths == [110.0, 330.0, 220.0]


def test_every_benchmark_of_the_paper_has_a_section() -> None:
    names = {section.name for section in SECTIONS}
    assert set(BENCHMARKS) <= names <= {*BENCHMARKS, *SCRIPTS}
    printed = {section.name for section in SECTIONS if section.is_printed}
    assert printed == names & set(SCRIPTS)


def test_the_page_is_what_is_made_from_the_results() -> None:
    found = latest(NAMES)
    hint = "run `python -m benchmarks.page`"
    assert PAGE.read_text() == make_page(found), hint
    paths = IMAGES.iterdir() if IMAGES.exists() else ()
    kept = {path.name: path.read_bytes() for path in paths}
    assert kept == make_pictures(found), hint
