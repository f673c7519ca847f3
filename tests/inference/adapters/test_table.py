"""Adapters that come and go while steps run."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from pie_trio.errors import AdapterError, EngineError
from pie_trio.inference.engine import open_engine
from pie_trio.inference.fake import FakeEngine
from tests.adapter_factory import write_adapter
from tests.inference.contexts import Context, generate, run

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.engine_api import Batch

PROMPT = [256, *b"Once"]


def test_an_adapter_is_not_dropped_under_a_step() -> None:
    caught: list[str] = []

    def drop(_batch: Batch) -> None:
        engine.drop_adapter("two")
        with pytest.raises(AdapterError) as error:
            engine.drop_adapter("one")
        caught.append(str(error.value))

    engine = FakeEngine(adapters=("one", "two"), on_step=drop)
    run(engine, Context([0]).feed(PROMPT), Context([1, 2]).feed(PROMPT, adapter="one"))
    assert caught == ["the adapter one is in use: drop it when what uses it has ended"]
    assert [*engine.info.adapters] == ["one"]
    engine.drop_adapter("one")
    assert [*engine.info.adapters] == []


def test_a_step_that_fails_lets_go_of_its_adapters() -> None:
    engine = FakeEngine(adapters=("one",), failures={0: EngineError("broken")})
    with pytest.raises(EngineError, match="broken"):
        run(engine, Context([0]).feed(PROMPT, adapter="one"))
    with pytest.raises(EngineError, match="one is 99"):
        run(engine, Context([99, 98]).feed(PROMPT, adapter="one"))
    engine.drop_adapter("one")


def test_others_load_and_drop_while_one_generates(
    tiny_llama: Path, tmp_path: Path
) -> None:
    engine = open_engine(
        tiny_llama, name="m", num_pages=16, page_size=8, num_threads=1
    ).engine
    adapters = [write_adapter(tmp_path / str(i), tiny_llama, seed=i) for i in range(3)]
    engine.load_adapter("steady", adapters[0])

    def tokens() -> list[list[int]]:
        contexts = [Context(range(8)), Context(range(8, 16))]
        return generate(engine, contexts, [PROMPT, PROMPT], 40, adapter="steady")

    expected, failures = tokens(), list[Exception]()

    def change(index: int) -> None:
        try:
            for _ in range(30):
                engine.load_adapter(f"a{index}", adapters[index])
                assert {"steady", f"a{index}"} <= {*engine.info.adapters}
                engine.drop_adapter(f"a{index}")
                assert f"a{index}" not in engine.info.adapters
        except Exception as error:  # noqa: BLE001 -- it is the result
            failures.append(error)

    threads = [threading.Thread(target=change, args=(i,)) for i in (1, 2)]
    for thread in threads:
        thread.start()
    found = list[list[list[int]]]()
    while any(thread.is_alive() for thread in threads) or not found:
        found.append(tokens())
    for thread in threads:
        thread.join()
    assert failures == []
    assert all(one == expected for one in found)
    assert engine.info.adapters == ("steady",)
