"""``pie run --profile``."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.cli.test_run import write_program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Pie

STEPS = 5
GENERATE = (
    "async with Context() as ctx:\n"
    "    await ctx.fill('x')\n"
    f"    for _ in range({STEPS}):\n"
    "        token = (await ctx.forward(top=1)).argmax()\n"
    "        ctx.append([token])\n"
)


def read_profile(path: Path) -> Counter[str]:
    """Return how often each frame was opened, after a look whether frames are nested."""
    found: Counter[str] = Counter()
    content = json.loads(path.read_text())
    frames = [frame["name"] for frame in content["shared"]["frames"]]
    for profile in content["profiles"]:
        opened: list[int] = []
        last = profile["startValue"]
        for event in profile["events"]:
            assert event["at"] >= last, "time goes on"
            last = event["at"]
            if event["type"] == "O":
                opened.append(event["frame"])
                found[frames[event["frame"]]] += 1
            else:
                assert opened.pop() == event["frame"], "the innermost frame ends first"
        assert not opened
        assert last <= profile["endValue"]
    assert list(path.parent.glob(".*part")) == [], "nothing else is left there"
    return found


def test_a_profile_has_guests_host_calls_tasks_and_steps(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    program, path = write_program(tmp_path, GENERATE), tmp_path / "profile.json"
    done = pie("run", "--model", random_model, "--profile", path, program)
    assert done.code == 0, done.err
    found = read_profile(path)
    (engine,) = (name for name in found if name.startswith("engine "))
    assert found[engine] == STEPS
    assert found["call allocate.alloc-kvpage"] == 1
    assert sum(n for name, n in found.items() if name.startswith("guest ")) >= STEPS
    assert found["task Batcher.run"] >= 1
    assert "waiting" in found


def test_the_parts_of_a_run_are_summed_up(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    program, path = write_program(tmp_path, GENERATE), tmp_path / "profile.json"
    done = pie("run", "--model", random_model, "--profile", path, program)
    (line,) = re.findall(r"^profile of .*$", done.err, re.M)
    assert f", {STEPS} steps in {path}" in line
    shares = [int(share) for share in re.findall(r"(\d+)%", line)]
    assert len(shares) == 6
    assert 95 <= sum(shares) <= 105


def test_a_program_that_fails_leaves_its_profile(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    program = write_program(tmp_path, GENERATE + "raise ValueError('on purpose')")
    path = tmp_path / "profile.json"
    done = pie("run", "--model", random_model, "--profile", path, program)
    assert done.code == 1
    assert "ValueError: on purpose" in done.err
    assert read_profile(path)


@pytest.mark.parametrize("flag", ["--native", "--watch"])
def test_what_has_no_profile_is_refused(pie: Pie, tmp_path: Path, flag: str) -> None:
    program, path = write_program(tmp_path, "pass"), tmp_path / "profile.json"
    done = pie("run", "--profile", path, flag, program)
    assert done.code == 2
    assert f"leave {flag} out" in done.err
    assert not path.exists()


def test_a_folder_is_no_file_for_a_profile(pie: Pie, tmp_path: Path) -> None:
    done = pie("run", "--profile", tmp_path, write_program(tmp_path, "pass"))
    assert done.code == 2
    assert f"--profile {tmp_path} is a folder: name a file" in done.err
