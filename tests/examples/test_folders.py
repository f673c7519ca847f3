"""What holds of every example: its README, its length, and that it runs natively too."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest

from docs.techniques import PAGE, TECHNIQUES, Technique, count_lines
from tests.examples.running import EXAMPLES

if TYPE_CHECKING:
    from tests.examples.running import Examples

BY_FOLDER = {technique.folder: technique for technique in TECHNIQUES}


@pytest.mark.parametrize("technique", TECHNIQUES, ids=lambda t: t.folder)
def test_a_technique_is_no_longer_than_in_the_paper(technique: Technique) -> None:
    lines = count_lines(EXAMPLES / technique.folder / "app.py")
    assert technique.paper is None or lines <= technique.paper
    row = re.search(
        rf"^\| {technique.folder.replace('_', ' ')} \| (\d+) \|", PAGE.read_text(), re.M
    )
    assert row is not None, "run python docs/techniques.py"
    assert int(row[1]) == lines, "run python docs/techniques.py"


@pytest.mark.parametrize("folder", sorted(BY_FOLDER))
def test_a_readme_has_commands_and_what_they_print(folder: str) -> None:
    text = (EXAMPLES / folder / "README.md").read_text()
    commands = re.findall(r"^\$ pie run (.+)\n(.+)$", text, re.M)
    assert commands
    for command, output in commands:
        assert f"examples/{folder}" in shlex.split(command)
        assert not output.startswith("$")


@pytest.mark.parametrize(
    "folder", ["context_aware_decoding", "graph_of_thought", "mcts"]
)
def test_an_example_does_the_same_natively(examples: Examples, folder: str) -> None:
    outcome = examples.run_natively(folder)
    assert parts(outcome.result) == parts(examples.run(folder).result)


def parts(result: Any) -> Any:
    """Return a result without the order of its parts: they are merged as they come."""
    return sorted(result.split(", ")) if isinstance(result, str) else result
