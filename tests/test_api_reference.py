"""``docs/api.md`` is up to date and complete, and its generator reads what there is."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import inferlet_py

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/api.md"


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs/api_reference.py"))


def test_the_page_is_up_to_date(reference: dict[str, Any]) -> None:
    assert PAGE.read_text() == reference["make_page"](), (
        "run python docs/api_reference.py"
    )


def test_every_function_of_the_wit_is_covered_by_a_test(
    reference: dict[str, Any],
) -> None:
    assert reference["find_problems"]() == []


def test_everything_in_the_wit_is_on_the_page() -> None:
    page = PAGE.read_text()
    count = 0
    for path in (ROOT / "inferlet_py/wit").glob("*.wit"):
        text = re.sub(r"///?.*", "", path.read_text())
        names = re.findall(r"^interface ([\w-]+) \{", text, re.M)
        kinds = r"(?:record|enum|variant|flags|type)"
        declared = re.findall(rf"^  {kinds} ([\w-]+)", text, re.M)
        functions = re.findall(r"^  %?([\w-]+): func\(", text, re.M)
        for name in names:
            assert f"\n### {name}\n" in page
        for name in declared + functions:
            assert f"\n#### `{name}`\n" in page, name
        count += len(functions)
    assert page.count(": func(") == count


def test_every_public_name_is_on_the_page() -> None:
    page = PAGE.read_text()
    for name in inferlet_py.__all__:
        assert f"\n### `{name}`\n" in page, name


def test_the_comments_of_the_wit_are_its_text(reference: dict[str, Any]) -> None:
    runtime = reference["read_interfaces"]()["runtime"]
    (level,) = runtime.of_kind("enum")
    assert level.documentation == "How loud a log line is."
    assert level.text.startswith("enum level {\n  debug,")
    by_name = {item.name: item for item in runtime.of_kind("func")}
    assert by_name["end-span"].documentation == "End a span; unknown numbers are fine."
    assert by_name["now"].text == "now: func() -> f64;"


@pytest.mark.parametrize(
    ("key", "changes", "problem"),
    [
        ("runtime.nothing", {}, "is not in the WIT"),
        ("runtime.now", {"test": ""}, "no test covers it yet"),
        ("runtime.now", {"sdk": ["nothing"]}, "inferlet_py has no nothing"),
        (
            "runtime.now",
            {"test": "tests/test_repository.py::test_nothing"},
            "there is no test tests/test_repository.py::test_nothing",
        ),
        (
            "runtime.now",
            {"test": "tests/test_repository.py::test_the_versions_agree"},
            "test_the_versions_agree does not call current_time or now",
        ),
    ],
)
def test_a_table_that_is_wrong_says_where(
    tmp_path: Path,
    reference: dict[str, Any],
    key: str,
    changes: dict[str, Any],
    problem: str,
) -> None:
    row: dict[str, Any] = {
        "sdk": ["current_time"],
        "test": "tests/inferlet_py/test_kernel_deadlines.py::test_x",
        **changes,
    }
    lines = [f'["{key}"]', *(f"{name} = {value!r}" for name, value in row.items())]
    table = tmp_path / "coverage.toml"
    table.write_text("\n".join(lines))
    reference["find_problems"].__globals__["COVERAGE"] = table
    try:
        problems = reference["find_problems"]()
    finally:
        original = ROOT / "docs/api_coverage.toml"
        reference["find_problems"].__globals__["COVERAGE"] = original
    assert any(found.startswith(key) and problem in found for found in problems)
    assert "queues.create-queue is not in docs/api_coverage.toml" in problems


def test_a_function_without_a_test_is_shown_as_missing(
    tmp_path: Path, reference: dict[str, Any]
) -> None:
    table = tmp_path / "coverage.toml"
    table.write_text('["runtime.now"]\ntest = ""\n')
    variables = reference["make_page"].__globals__
    variables["COVERAGE"] = table
    try:
        page = reference["make_page"]()
    finally:
        variables["COVERAGE"] = ROOT / "docs/api_coverage.toml"
    assert "|  | `runtime.now` |  | **missing** |" in page
