"""The paper's calls on a real model, in Wasm and natively."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Pie

PROGRAM = "tests/cli/paper_calls.py"


def test_all_ways_to_the_next_token_lead_to_the_same_one(
    pie: Pie, random_model: Path, mode_flags: list[str]
) -> None:
    done = pie("run", "--model", random_model, *mode_flags, PROGRAM)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found["embeds"]) == 8
    assert found["embeds"] == found["fused"] == found["masked"] == found["forked"]
    assert all(found[name] for name in ("service", "traits", "explained"))
