"""``--adapter``: what programs make of adapters, in Wasm and natively."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.run.setup import parse_adapters
from pie_trio.config import ModelConfig
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Pie

PROGRAM = "tests/cli/adapters.py"


@pytest.fixture(scope="module")
def adapters(
    random_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    from tests.adapter_factory import write_adapter

    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder / name, random_model, targets, seed=seed)
        for seed, (name, targets) in enumerate(
            {"first": ("q_proj", "v_proj"), "second": ("o_proj", "up_proj")}.items()
        )
    }


def test_a_program_uses_two_adapters_and_none(
    pie: Pie,
    random_model: Path,
    adapters: dict[str, Path],
    tmp_path: Path,
    mode_flags: list[str],
) -> None:
    from tests.adapter_factory import write_merged

    flags = [f"--adapter={name}={path}" for name, path in adapters.items()]
    done = pie("run", "--model", f"m={random_model}", *flags, *mode_flags, PROGRAM)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["names"] == ["first", "second"]
    streams = found["streams"]
    assert len({*map(tuple, streams)}) == 3
    assert found["steps"] == streams
    assert found["reused"] == streams * 2
    assert found["calls"] == [[tokens[0]] * 2 for tokens in streams]
    assert found["refusal"] == "m has no adapter 'nobody': it has first, second"
    for tokens, (name, path) in zip(streams[1:], adapters.items(), strict=True):
        merged = write_merged(tmp_path / name, random_model, path)
        done = pie("run", "--model", f"m={merged}", *mode_flags, PROGRAM)
        assert done.code == 0, done.err
        assert json.loads(done.out)["streams"] == [tokens]


def test_an_adapter_that_cannot_be_loaded_is_a_usage_error(
    pie: Pie, random_model: Path, tmp_path: Path
) -> None:
    run = ("run", "--model", random_model)
    done = pie(*run, "--adapter", f"x={tmp_path}", PROGRAM)
    assert (done.code, done.out) == (2, "")
    assert "adapter_config.json: No such file" in done.err
    done = pie(*run, "--adapter", "x", PROGRAM)
    assert (done.code, done.out) == (2, "")
    assert "--adapter takes NAME=DIR or MODEL:NAME=DIR, got 'x'" in done.err


def test_adapters_go_to_the_models_that_they_are_named_for(tmp_path: Path) -> None:
    models = [ModelConfig(tmp_path, "big"), ModelConfig(tmp_path, "small")]
    texts = ["big:a=/x", "small:a=/y", "big:b=/z=1"]
    found = parse_adapters(texts, models)
    assert {
        model: [(name, str(path)) for name, path in own] for model, own in found.items()
    } == {"big": [("a", "/x"), ("b", "/z=1")], "small": [("a", "/y")]}
    assert parse_adapters(["a=/x"], models[:1]) == parse_adapters(
        ["big:a=/x"], models[:1]
    )
    for texts, message in (
        (["a=/x"], "say of which model"),
        (["huge:a=/x"], "no model 'huge', only big, small"),
        (["big:a=/x", "big:a=/y"], "two adapters are called a"),
        (["big:=/x"], "takes NAME=DIR"),
        (["big:a="], "takes NAME=DIR"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_adapters(texts, models)
