"""The page of limits names what there is: every limit with its default, every call, and real tests."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from pie_trio.application import computing
from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.config import SERVER_LIMITS, InstanceLimits, SharedLimits

HERE = Path(__file__).parent
PAGE = (HERE.parent / "docs/reference/limits.md").read_text()
MIB = 1 << 20


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shown(name: str, value: float | None) -> str:
    if value is None:
        return "none"
    if "bytes" in name and value >= MIB and value % MIB == 0:
        return f"{int(value) // MIB} MiB"
    return str(value)


def test_every_limit_of_an_instance_is_there_with_its_default() -> None:
    found = {row[0].strip("`"): row[1] for row in rows("An instance")}
    assert found == {
        name: shown(name, v) for name, v in asdict(InstanceLimits()).items()
    }


def test_every_limit_of_users_and_the_server_is_there_with_its_default() -> None:
    found = {row[0].strip("`"): row[1:3] for row in rows("A user, and the server")}
    server = asdict(SERVER_LIMITS)
    expected = {
        n: [shown(n, v), shown(n, server[n])] for n, v in asdict(SharedLimits()).items()
    }
    assert found == expected


def test_every_call_is_there() -> None:
    found = {
        row[0].strip("`"): set(re.findall(r"`([a-z-]+)`", row[1]))
        for row in rows("What each call may cost")
    }
    assert found == {i.short_name: set(i.functions) for i in make_interfaces()}


def test_calls_name_limits_that_there_are() -> None:
    known = {*asdict(InstanceLimits()), *asdict(SharedLimits()), "--swap-mib"}
    for row in rows("What each call may cost"):
        assert set(re.findall(r"`(.+?)`", row[3])) <= known, row[0]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`([a-z_/]+\.py)`", PAGE))))
def test_a_test_that_is_named_is_there(name: str) -> None:
    folders = (HERE, HERE.parent, HERE / "application/lifecycle")
    assert any((folder / name).is_file() for folder in folders)


def test_the_figures_of_cpu_time_are_those_of_the_code() -> None:
    text = PAGE.split("\n## CPU time\n")[1].split("\n## ")[0]
    for seconds in (
        computing.LAUNCH_SECONDS,
        computing.STEP_SECONDS,
        computing.MAX_SECONDS,
        computing.OWNER_SECONDS,
    ):
        assert f"{1e3 * seconds:g} ms" in text
