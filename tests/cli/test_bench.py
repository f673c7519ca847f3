"""``pie bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.cli import bench, main

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.cli.conftest import Pie


def test_it_lists_the_benchmarks(pie: Pie) -> None:
    done = pie("bench")
    assert done.code == 0, done.err
    assert "usage: pie bench [-h] NAME" in done.out
    assert "techniques" in done.out


def test_a_benchmark_gets_its_own_options(pie: Pie) -> None:
    done = pie("bench", "scaling", "--coffee")
    assert done.code == 2
    assert "unrecognized arguments: --coffee" in done.err


def test_without_a_checkout_it_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert main(["bench", "agents"]) == 2
    assert "they are part of a checkout of Pie" in capsys.readouterr().err
