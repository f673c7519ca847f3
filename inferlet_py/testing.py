"""A pytest plugin for inferlets: the fixture ``pie`` runs programs on a scripted model.

It is loaded wherever this package is installed, and needs pie-trio once a test asks for it::

    def test_it_greets(pie: Pie) -> None:
        pie.script({"Hello": " world"})
        assert pie.run_sync("app.py", prompt="Hello").result == " world"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

    from pie_trio.application.authoring.testing.pie import Pie as Pie
    from pie_trio.application.authoring.testing.runs import Outcome as Outcome
    from pie_trio.application.authoring.testing.runs import Sandbox
    from pie_trio.application.recording.player import DivergedError as DivergedError

_HOMES = {
    "DivergedError": "recording.player",
    "Outcome": "authoring.testing.runs",
    "Pie": "authoring.testing.pie",
}


def __getattr__(name: str) -> Any:
    """Import what tests name, late: pytest loads this plugin where pie-trio may be missing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"pie_trio.application.{_HOMES[name]}"
    return getattr(importlib.import_module(home), name)


@pytest.fixture(scope="session")
def pie_sandbox() -> Generator[Sandbox]:
    """Wasm for all tests; it is prepared when a test first runs a program in it."""
    runs = pytest.importorskip(
        "pie_trio.application.authoring.testing.runs",
        reason="pie-trio is not installed: pip install pie-trio",
    )
    sandbox: Sandbox = runs.Sandbox()
    try:
        yield sandbox
    finally:
        sandbox.close()


@pytest.fixture
def pie(pie_sandbox: Sandbox, request: pytest.FixtureRequest) -> Pie:
    """Runs programs: ``pie.run_sync("app.py", prompt="...")``, or ``await pie.run(...)``."""
    from pie_trio.application.authoring.testing.pie import Pie

    return Pie(request.config.rootpath, pie_sandbox)
