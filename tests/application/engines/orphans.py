"""What a server does that is killed in the middle of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.engine_api import Batch
from tests.inference.contexts import Context

if TYPE_CHECKING:
    from pie_trio.engine_api import Engine


def step(engine: Engine) -> None:
    """Run a step."""
    engine.execute(Batch((Context([0]).feed(b"abc"),)))
