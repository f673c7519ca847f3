"""pie-tiny and its draft, loaded once for all examples."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.authoring.testing.pie import Pie
from pie_trio.application.authoring.testing.runs import Sandbox
from pie_trio.application.run.setup import load_engine
from pie_trio.config import ModelConfig
from tests.examples.running import EXAMPLES, MODELS, Examples

if TYPE_CHECKING:
    from collections.abc import Generator

ENGINES = {
    "pie-tiny": ModelConfig(MODELS / "pie_tiny", "pie-tiny"),
    "draft": ModelConfig(MODELS / "pie_tiny_draft", "draft"),
    "small": ModelConfig(MODELS / "pie_tiny", "small", num_pages=24),
}


@contextmanager
def open_examples() -> Generator[Examples]:
    """Load the models; examples run on them in the block."""
    engines = {name: load_engine(config) for name, config in ENGINES.items()}
    sandbox = Sandbox()
    try:
        yield Examples(engines, sandbox)
    finally:
        sandbox.close()
        for engine in engines.values():
            engine.engine.close()


@pytest.fixture(scope="session")
def examples(torch_is_there: None) -> Generator[Examples]:
    """Runs examples."""
    with open_examples() as found:
        yield found


@pytest.fixture
def tiny(examples: Examples) -> Pie:
    """Runs examples on pie-tiny, in Wasm or natively, with messages of a client."""
    pie = Pie(EXAMPLES, examples.sandbox)
    pie.use_model(MODELS / "pie_tiny")
    return pie
