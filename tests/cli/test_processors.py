"""Grammars, penalties and samplers on pie-tiny, in Wasm and natively."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Pie

PROGRAM = "tests/cli/processors.py"


def check(found: dict[str, Any]) -> None:
    for person in found["persons"]:
        assert person["reason"] == "stop", person["text"]
        value = person["value"]
        assert list(value) == ["name", "age", "is_big"]
        kinds = [type(field) for field in value.values()]
        assert kinds in ([str, int, bool], [str, float, bool])  # 1e3 is an integer too
    assert found["alone"] == found["together"]
    assert len(set(found["alone"])) == len(found["alone"])
    for text in found["alone"]:
        assert re.fullmatch("[A-Z][a-z]{2,8}( [a-z]{1,8}){6}[.]", text)
    plain, varied = found["plain"], found["varied"]
    assert len(set(varied)) / len(varied) > len(set(plain)) / len(plain)


def test_constraints_hold_whatever_the_model_would_say(
    torch_is_there: None, pie: Pie, mode_flags: list[str]
) -> None:
    pytest.importorskip("llguidance")
    done = pie("run", *mode_flags, PROGRAM)
    assert done.code == 0, done.err
    check(json.loads(done.out))
