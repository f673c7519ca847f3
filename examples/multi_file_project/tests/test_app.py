"""The program on a scripted model: what it says to a prompt is known."""

from pathlib import Path
from typing import Any, Literal

import pytest

from inferlet_py.testing import Pie

APP = Path(__file__).parents[1]
SEARCH: dict[str, Any] = {"prompt": "A kite is", "length": 2, "branches": 2, "width": 1}


@pytest.mark.parametrize("mode", ["wasm", "native"])
def test_what_is_said_most_is_found(pie: Pie, mode: Literal["wasm", "native"]) -> None:
    pie.script({"A kite is": [" red.", " round."]})
    run = pie.run_sync(APP, mode=mode, **SEARCH)
    assert run.result["text"] == " r"
    assert run.result["is_certain"]
    assert run.result["logprob"] == pytest.approx(0.0, abs=1e-3)
