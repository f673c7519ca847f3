"""What the documents say of the sandbox is what the language component answers."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.authoring.subset import REFUSALS, load_subset
from tests.test_repository import ROOT

if TYPE_CHECKING:
    from pie_trio.application.wasm.runtime import LinkedComponent

AGAIN = "run `python docs/python_subset.py`"


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "python_subset.py"))


async def test_data_and_page_are_fresh(
    language: LinkedComponent, script: dict[str, Any]
) -> None:
    found = await script["probe"](language)
    assert script["DATA"].read_text() == script["encode"](found), AGAIN
    assert script["PAGE"].read_text() == script["render"](found), AGAIN


def test_every_refusal_has_its_error() -> None:
    assert load_subset().errors.keys() == {refusal.name for refusal in REFUSALS}
