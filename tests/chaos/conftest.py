"""The language component, linked so that the simulation gives its random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.chaos.world import Language, open_language

if TYPE_CHECKING:
    from collections.abc import Generator


@pytest.fixture(scope="session")
def chaos_language() -> Generator[Language]:
    """The language component; the first test that asks for it may build it."""
    with open_language() as language:
        yield language
