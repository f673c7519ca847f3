from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.application.engines.openers import Brake, start_fake

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pie_trio.application.engines.remote import RemoteEngine


@pytest.fixture
def brake(tmp_path: Path) -> Brake:
    """Holds the steps of the engine."""
    return Brake(tmp_path)


@pytest.fixture
def engine(brake: Brake, tmp_path: Path) -> Iterator[RemoteEngine]:
    """A fake in a process of its own."""
    remote = start_fake(tmp_path)
    yield remote
    remote.close()
