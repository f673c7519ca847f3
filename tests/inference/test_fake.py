from __future__ import annotations

import subprocess
import sys

import pytest

from pie_trio.engine_api import Batch
from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.inference.contexts import Context, generate, run

PROMPT = [256, *b"Once upon a time"]


def test_greedy_tokens_are_those_that_are_foretold() -> None:
    engine = FakeEngine(page_size=4)
    tokens = generate(
        engine, [Context([5, 0, 9, 2, 7, 1, 3, 20])], [PROMPT], 12, chunk_size=5
    )
    assert tokens == [fake_continuation(PROMPT, 12)]


def test_different_prompts_go_different_ways() -> None:
    tails = [fake_continuation([*PROMPT, last], 4) for last in range(256)]
    assert len({tuple(tail) for tail in tails}) == 256


def test_a_key_depends_on_the_context_it_was_made_in() -> None:
    """So reusing a page under another prefix shows, as in a real model."""
    engine = FakeEngine(page_size=4)
    run(engine, Context([0, 1]).feed(b"samepage"))
    run(engine, Context([2, 3]).feed(b"elsepage"))
    first = engine.execute(Batch((Context([0, 1, 8], 8).feed(b"x", top_k=9),)))
    swapped = engine.execute(Batch((Context([0, 3, 8], 8).feed(b"x", top_k=9),)))
    assert first[0].top_ids.tolist() != swapped[0].top_ids.tolist()


def test_steps_are_recorded_and_failures_come_as_scripted() -> None:
    engine = FakeEngine(failures={1: EngineError("scripted")})
    run(engine, Context([0]).feed(b"a"), Context([1]).feed(b"b"))
    with pytest.raises(EngineError, match="scripted"):
        run(engine, Context([0]).feed(b"a"))
    assert run(engine, Context([0]).feed(b"a")) == fake_continuation(b"a", 1)
    assert engine.batch_sizes == [2, 1, 1]
    assert len(engine.batches) == 3


def test_a_failed_step_writes_nothing() -> None:
    engine = FakeEngine(page_size=4, failures={1: EngineError("scripted")})
    context = Context([0, 1])
    run(engine, context.feed(b"abcd"))
    with pytest.raises(EngineError, match="scripted"):
        run(engine, Context([0]).feed(b"xxxx"))
    assert run(engine, context.feed(b"e")) == fake_continuation(b"abcde", 1)


def test_the_hook_sees_each_step_first() -> None:
    seen: list[Batch] = []
    engine = FakeEngine(on_step=seen.append)
    run(engine, Context([0]).feed(b"a"))
    assert seen == engine.batches


def test_the_fake_needs_no_torch() -> None:
    code = "import sys, pie_trio.inference.fake; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
