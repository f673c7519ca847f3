"""A model that two processes share: what they compute is in ``tests/inference/parallel``."""

from __future__ import annotations

import os
import select
import signal
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import trio

pytest.importorskip("torch", reason="it runs a model")

from pie_trio.application.engines.device import open_process_device
from pie_trio.application.engines.loading import open_model, start_engine
from pie_trio.application.engines.process import engine_environment, spawn_engine
from pie_trio.application.engines.ranks import open_ranks
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.application.run.setup import load_engine
from pie_trio.config import EngineProcessConfig, ModelConfig
from pie_trio.engine_api import Batch, ProcessorSpec
from pie_trio.errors import ConfigError, EngineError, EngineLostError
from tests.adapter_factory import write_adapter
from tests.application.engines.openers import hold_other_ranks, open_rank_0_alone
from tests.control.engines import TIME_LIMIT_SECONDS
from tests.inference.contexts import Context, generate, int32, page_lists, run
from tests.model_factory import write_model_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pie_trio.engine_api import Engine
    from pie_trio.inference.engine import TorchEngine
    from tests.application.engines.openers import Brake

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="ranks need Linux"
)

PAGE_SIZE = 4
PROMPTS = [[256, *b"Once upon a time"], [256], [256, *b"A dog"]]
QUICK = EngineProcessConfig(first_delay_seconds=0.01)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    """A model for two ranks."""
    path = write_model_directory(tmp_path_factory.mktemp("ranks") / "model", "qwen2")
    return ModelConfig(
        path,
        "shared",
        num_pages=64,
        page_size=PAGE_SIZE,
        num_embeds=8,
        tensor_parallel=2,
    )


@pytest.fixture(scope="module")
def alone(config: ModelConfig) -> TorchEngine:
    """The same model in this process."""
    return open_model(replace(config, tensor_parallel=1)).engine


@pytest.fixture(scope="module")
def ranks(config: ModelConfig) -> Iterator[RemoteEngine]:
    """The model in two processes."""
    engine, _ = start_engine(config, QUICK)
    yield engine
    engine.close()


def decode(engine: Engine, adapter: str = "") -> list[list[int]]:
    contexts = [Context(ids) for ids in page_lists(3, 10, seed=1)]
    return generate(engine, contexts, PROMPTS, 8, chunk_size=7, adapter=adapter)


def other_ranks(engine: RemoteEngine) -> list[int]:
    """Return the processes that rank 0 has started."""
    parent = str(engine.process.popen.pid)
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[1] == parent:
            found.append(int(path.parent.name))
    return found


def test_two_processes_give_the_tokens_of_one(
    ranks: RemoteEngine, alone: TorchEngine
) -> None:
    assert len(other_ranks(ranks)) == 1
    assert ranks.info == alone.info
    assert decode(ranks) == decode(alone)


def test_forks_masks_and_pages_are_those_of_one(
    ranks: RemoteEngine, alone: TorchEngine
) -> None:
    def go(engine: Engine) -> list[int]:
        context = Context([0, 1, 2])
        tokens = [run(engine, context.feed(b"some text"))[0]]
        child, copies = context.fork([7, 8], PAGE_SIZE)
        mask = np.ones((2, 11), np.bool_)
        mask[0, 3:6] = mask[1, :4] = False
        both = (context.feed(tokens), child.feed(b"ab", mask=mask))
        tokens += run(engine, *both, copies=copies)
        pages = engine.read_pages(int32(0, 1, 7))
        engine.write_pages(int32(40, 50, 60), pages)
        moved = Context([40, 50, 60], 11)
        tokens += run(engine, moved.feed(tokens[-1:]))
        assert tokens[-1:] == run(engine, child.feed([tokens[-2]]))
        return tokens

    assert go(ranks) == go(alone)


def test_what_rank_0_refuses_never_reaches_the_others(
    ranks: RemoteEngine, alone: TorchEngine
) -> None:
    with pytest.raises(EngineError, match="page id"):
        run(ranks, Context([64]).feed(b"abc"))
    with pytest.raises(EngineError, match="processor 9"):
        run(ranks, Context([0]).feed(b"abc", processor=9))
    ranks.create_processor(1, ProcessorSpec(bias=((65, 100.0),)))
    assert run(ranks, Context([0]).feed(b"abc", processor=1)) == [65]
    assert decode(ranks) == decode(alone)


def test_adapters_come_to_all_ranks_and_go(
    ranks: RemoteEngine, alone: TorchEngine, config: ModelConfig, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path, config.directory, ("q_proj", "o_proj"))
    for _ in range(2):
        for engine in (ranks, alone):
            engine.load_adapter("a", adapter)
        assert decode(ranks, "a") == decode(alone, "a") != decode(alone)
        for engine in (ranks, alone):
            engine.drop_adapter("a")
    with pytest.raises(EngineError, match="not loaded"):
        decode(ranks, "a")


async def test_when_a_rank_is_killed_all_end_and_the_engine_starts_again(
    ranks: RemoteEngine, alone: TorchEngine
) -> None:
    lost = trio.Event()

    async def kill(pid: int) -> None:
        """Kill a rank, and wait until all have ended."""
        nonlocal lost
        lost = trio.Event()
        with ExitStack() as stack:
            numbers = [os.pidfd_open(rank) for rank in other_ranks(ranks)]
            for number in numbers:
                stack.callback(os.close, number)
            os.kill(pid, signal.SIGKILL)
            await lost.wait()
            for number in numbers:
                await trio.to_thread.run_sync(wait_ended, number)
        with pytest.raises(EngineLostError):
            ranks.execute(Batch())

    with trio.fail_after(TIME_LIMIT_SECONDS):
        async with open_process_device(ranks) as device:
            device.watch(lambda: lost.set())
            await kill(other_ranks(ranks)[0])
            assert "ended with another rank of its model" in str(ranks.error)
            await device.restore()
            assert decode(ranks) == decode(alone)
            await kill(ranks.process.popen.pid)
            assert "SIGKILL" in str(ranks.error)


def wait_ended(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(20e3)


def test_a_part_that_cannot_be_opened_is_refused_with_its_reason() -> None:
    opener = partial(open_ranks, open_rank_0_alone, 2)
    with pytest.raises(ConfigError, match="rank 1 has no such file"):
        RemoteEngine("none", opener, engine_environment(1))


def test_a_rank_that_is_busy_ends_with_rank_0_all_the_same(
    brake: Brake, tmp_path: Path
) -> None:
    process = spawn_engine(engine_environment(1))
    held = partial(hold_other_ranks, str(tmp_path))
    process.send_opening(partial(open_ranks, held, 2), [])
    number = os.pidfd_open(int(brake.pipe.read_text()))
    process.close()
    try:
        wait_ended(number)
    finally:
        os.close(number)


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        ({}, "thread", "--tensor-parallel 2 needs processes"),
        ({"tensor_parallel": 4}, None, r"attention heads \(6\), KV heads \(2\)"),
        ({"device": "auto"}, None, "say --device cuda, or --device cpu"),
        ({"tensor_parallel": 0}, "process", "takes 1 or more, got 0"),
    ],
)
def test_what_ranks_cannot_do_is_refused_before_a_process_starts(
    config: ModelConfig, change: dict[str, str | int], kind: str | None, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        load_engine(replace(config, **change), kind)  # type: ignore[arg-type]
