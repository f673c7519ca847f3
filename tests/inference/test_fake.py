from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pie_trio.engine_api import Batch
from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from pie_trio.inference.sampler import splitmix64
from tests.inference.contexts import Context, first_outputs, generate, run

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
    (first,) = first_outputs(engine, Context([0, 1, 8], 8).feed(b"x", top_k=9))
    (swapped,) = first_outputs(engine, Context([0, 3, 8], 8).feed(b"x", top_k=9))
    assert first.top_ids.tolist() != swapped.top_ids.tolist()


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


def test_a_token_may_be_made_to_fail_its_forward_alone() -> None:
    engine = FakeEngine(broken_token_ids=[7, 9])
    result = engine.execute(
        Batch((Context([0]).feed([1, 9, 2]), Context([1]).feed([1, 8])))
    )
    assert isinstance(result.forwards[0], EngineError)
    assert not isinstance(result.forwards[1], EngineError)


def test_adapters_give_results_of_their_own() -> None:
    engine = FakeEngine(adapters=("pirate", "poet"))
    assert engine.info.adapters == ("pirate", "poet")
    tokens = [
        generate(engine, [Context([0, 1])], [PROMPT], 6, adapter=adapter)
        for adapter in ("", "pirate", "poet", "pirate")
    ]
    assert tokens[0] == [fake_continuation(PROMPT, 6)]
    assert len({str(found) for found in tokens}) == 3
    assert tokens[1] == tokens[3]


def test_a_hidden_state_is_shown_as_the_digits_of_its_number() -> None:
    engine = FakeEngine()
    (result,) = first_outputs(engine, Context([0]).feed(b"a", hidden=True, logits=True))
    digits = [int(digit * 2**16) for digit in result.hidden[0]]
    number = sum(digit << 16 * place for place, digit in enumerate(digits))
    token_ids = np.arange(258).astype(np.uint64)
    expected = splitmix64(np.uint64(number) + token_ids) >> np.uint64(40)
    assert (result.logits[0] * 2**21).tolist() == expected.astype(float).tolist()


def test_the_hook_sees_each_step_first() -> None:
    seen: list[Batch] = []
    engine = FakeEngine(on_step=seen.append)
    run(engine, Context([0]).feed(b"a"))
    assert seen == engine.batches


def test_the_fake_needs_no_torch() -> None:
    code = "import sys, pie_trio.inference.fake; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
