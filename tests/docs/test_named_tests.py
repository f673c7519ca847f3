"""Pages that say which test shows something name tests that are there."""

from __future__ import annotations

import re

import pytest

from tests.cli.conftest import ROOT

FILE = re.compile(r"`([\w/]*test_\w+\.py|[a-z]+/)`")
FUNCTION = re.compile(r"`(test_\w+)`")


@pytest.mark.parametrize("page", ["security.md", "operations.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    tests = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    names = {str(path.relative_to(ROOT / "tests")) for path in tests}
    files, functions = set(FILE.findall(text)), set(FUNCTION.findall(text))
    assert len(files) > 10
    assert len(functions) > 5
    missing = [
        file
        for file in files
        if not any(name.endswith(file) or name.startswith(file) for name in names)
    ]
    missing += [
        function
        for function in functions
        if not any(f"def {function}(" in test for test in tests.values())
    ]
    assert not missing, f"{page} names what is not there"
