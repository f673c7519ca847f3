"""What every Engine must do with processors."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pie_trio.engine_api import Batch, OutputSpec, ProcessorSpec, SamplerSpec
from pie_trio.errors import (
    BadArgumentError,
    EngineError,
    GrammarError,
    ProcessorError,
)
from pie_trio.inference.sampler import uniforms
from tests.inference.contexts import (
    GREEDY,
    Context,
    execute,
    first_outputs,
    int32,
    page_lists,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.engine_api import ForwardRequest, OutputResult
    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.fake import FakeEngine

    AnyEngine = FakeEngine | TorchEngine

PROMPT = [256, *b"Once upon"]
EOS = 257
DRAW = SamplerSpec(temperature=1.0, seed=3)
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["Ann", "Bob"]}, "age": {"type": "boolean"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def needs_grammars(engine: AnyEngine) -> None:
    if "grammar" not in engine.info.traits:
        pytest.skip("llguidance is not installed")


def ask(
    context: Context,
    tokens: Sequence[int],
    processor: int,
    *,
    accepts: bool = True,
    sampler: SamplerSpec = DRAW,
) -> ForwardRequest:
    return context.feed(
        tokens, sampler=sampler, processor=processor, accept_sampled=accepts
    )


def decode(
    engine: AnyEngine,
    processors: Sequence[int],
    num_tokens: int,
    *,
    samplers: Sequence[SamplerSpec] | None = None,
    stagger: int = 0,
) -> list[list[int]]:
    """Decode a context for each processor in one batch; a grammar that has ended ends it."""
    contexts = [
        Context(pages) for pages in page_lists(len(processors), 60 // len(processors))
    ]
    samplers = samplers or [DRAW] * len(processors)
    found: list[list[int]] = [[] for _ in processors]
    waiting = [list(PROMPT) for _ in processors]
    ended: set[int] = set()
    for step in range(num_tokens + stagger * len(processors)):
        active = [
            i
            for i in range(len(processors))
            if i not in ended and len(found[i]) < num_tokens and step >= i * stagger
        ]
        requests = [
            ask(contexts[i], waiting[i], processors[i], sampler=samplers[i])
            for i in active
        ]
        for i, result in zip(active, first_outputs(engine, *requests), strict=True):
            waiting[i] = result.token_ids.tolist()
            found[i] += waiting[i]
            if result.has_ended:
                ended.add(i)
    return found


def sample_once(
    engine: AnyEngine, processor: int, accepts: bool = True
) -> OutputResult:
    request = ask(Context(range(8)), PROMPT, processor, accepts=accepts)
    (result,) = first_outputs(engine, request)
    return result


def bits(mask: np.ndarray[tuple[int, ...], np.dtype[np.uint32]]) -> set[int]:
    """Return the tokens that a mask allows."""
    words: list[int] = mask.tolist()
    return {i for i in range(32 * len(words)) if words[i // 32] >> (i % 32) & 1}


def test_the_traits_tell_that_there_are_processors(engine: AnyEngine) -> None:
    assert "processors" in engine.info.traits


def test_a_bias_changes_what_is_sampled_and_nothing_else(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec(bias=((65, 100.0),)))
    plain = Context(range(8)).feed(
        PROMPT, sampler=DRAW, top_k=5, logprobs=True, entropy=True, logits=True
    )
    (expected,) = first_outputs(engine, plain)
    (output,) = plain.outputs
    biased = replace(plain, outputs=(replace(output, processor=1),))
    (found,) = first_outputs(engine, biased)
    assert found.token_ids.tolist() == [65]
    assert found.top_ids.tolist() == expected.top_ids.tolist()
    assert found.logits.tolist() == expected.logits.tolist()
    assert found.entropy.tolist() == expected.entropy.tolist()
    logits = expected.logits[0].astype(np.float64)
    logprob = logits[65] - math.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert found.logprobs[0] == pytest.approx(logprob, abs=1e-4)


def test_rows_with_and_without_processors_share_a_batch(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec(allowed_tokens=(70, 71)))
    requests = [
        Context([0, 1, 2]).feed(PROMPT, sampler=DRAW),
        ask(Context([3, 4, 5]), PROMPT, 1, accepts=False),
        Context([6, 7, 8]).feed(PROMPT),
    ]
    results = first_outputs(engine, *requests)
    for request, together in zip(requests, results, strict=True):
        (alone,) = first_outputs(engine, request)
        assert alone.token_ids.tolist() == together.token_ids.tolist()
    assert results[1].token_ids[0] in (70, 71)


def test_only_allowed_tokens_are_sampled(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec(allowed_tokens=(40, 41, 42)))
    assert set(decode(engine, [1], 20)[0]) <= {40, 41, 42}
    assert bits(engine.allowed_tokens(1)) == {40, 41, 42}


def test_penalties_keep_greedy_decoding_from_repeating_itself(
    engine: AnyEngine,
) -> None:
    specs = [ProcessorSpec(), ProcessorSpec(presence_penalty=100.0)]
    for number, spec in enumerate(specs, 1):
        engine.create_processor(
            number, replace(spec, allowed_tokens=tuple(range(60, 100)))
        )
    plain, varied = decode(engine, [1, 2], 20, samplers=[GREEDY, GREEDY])
    assert len(set(varied)) == 20
    assert plain != varied


def test_a_token_that_is_not_accepted_is_not_penalized(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec(presence_penalty=100.0))
    first = sample_once(engine, 1, accepts=False).token_ids.tolist()
    assert sample_once(engine, 1, accepts=False).token_ids.tolist() == first
    assert engine.accept_tokens(1, first) == 1
    assert sample_once(engine, 1, accepts=False).token_ids.tolist() != first
    engine.roll_back(1, 1)
    assert sample_once(engine, 1, accepts=False).token_ids.tolist() == first


def test_a_seed_gives_the_same_tokens_alone_and_beside_others(
    engine: AnyEngine,
) -> None:
    specs = [
        ProcessorSpec(repetition_penalty=1.3, prompt=tuple(PROMPT)),
        ProcessorSpec(mirostat_tau=2.0, mirostat_eta=0.3),
        ProcessorSpec(dry_multiplier=2.0, allowed_tokens=(60, 61, 62)),
        ProcessorSpec(bias=((65, -math.inf), (66, 2.0)), frequency_penalty=0.2),
    ]
    if "grammar" in engine.info.traits:
        specs.append(ProcessorSpec("regex", "[a-f0-9]{30}"))
    samplers = [
        SamplerSpec(0.8, seed=i, top_k=(0, 30)[i % 2], typical_p=(1.0, 0.9)[i % 2])
        for i in range(len(specs))
    ]
    alone: list[list[int]] = []
    for number, spec in enumerate(specs, 1):
        engine.create_processor(number, spec)
        alone += decode(engine, [number], 20, samplers=[samplers[number - 1]])
        engine.drop_processors([number])
    for stagger in (0, 2):
        first = 100 * (1 + stagger)  # no number is used again
        numbers = list(range(first, first + len(specs)))
        for number, spec in zip(numbers, specs, strict=True):
            engine.create_processor(number, spec)
        together = decode(engine, numbers, 20, samplers=samplers, stagger=stagger)
        engine.drop_processors(numbers)
        assert together == alone


def test_mirostat_keeps_to_its_target_as_the_paper_has_it(engine: AnyEngine) -> None:
    tau, eta, limit = 3.0, 0.5, 6.0
    engine.create_processor(1, ProcessorSpec(mirostat_tau=tau, mirostat_eta=eta))
    context, tokens = Context(range(16)), list(PROMPT)
    limits: list[float] = []
    for _ in range(30):
        output = OutputSpec(
            int32(len(tokens) - 1), DRAW, logits=True, processor=1, accept_sampled=True
        )
        position = context.kv_len + len(tokens) - 1
        request = replace(context.feed(tokens, rows=None), outputs=(output,))
        (result,) = first_outputs(engine, request)
        # Algorithm 2, with the draw of this project.
        logits = result.logits[0].astype(np.float64)
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        is_kept = -np.log2(probs) <= limit
        is_kept[probs.argmax()] = True
        probs = np.where(is_kept, probs, 0.0)
        probs /= probs.sum()
        point = uniforms([DRAW.seed], int32(position))[0]
        expected = int(np.searchsorted(probs.cumsum(), point, side="right"))
        limits.append(limit)
        assert result.token_ids.tolist() == [expected]
        limit -= eta * (-math.log2(probs[expected]) - tau)
        tokens = [expected]
    assert max(limits) - min(limits) > 0.5  # it has learnt something


def draws(engine: AnyEngine, processor: int, count: int) -> list[int]:
    """Sample the same row with many seeds; nothing is accepted."""
    outputs = tuple(
        OutputSpec(int32(0), SamplerSpec(1.0, seed=seed), processor=processor)
        for seed in range(count)
    )
    request = replace(Context(range(8)).feed([65]), outputs=outputs)
    (results,) = execute(engine, Batch((request,)))
    return [int(result.token_ids[0]) for result in results]


def test_mirostat_learns_from_the_draws_of_a_fork_that_is_ahead(
    engine: AnyEngine,
) -> None:
    spec = ProcessorSpec(mirostat_tau=2.0, mirostat_eta=0.7)
    for number in (1, 2, 4):
        engine.create_processor(number, spec)
    tokens = decode(engine, [1], 11)[0]
    engine.fork_processor(2, [3], is_ahead=True)
    assert decode(engine, [3], 11)[0] == tokens
    assert engine.accept_tokens(2, tokens) == 11
    assert engine.accept_tokens(4, tokens) == 11  # has not drawn them
    expected = draws(engine, 1, 100)
    assert draws(engine, 3, 100) == draws(engine, 2, 100) == expected
    assert draws(engine, 4, 100) != expected


def test_what_is_rolled_back_is_as_if_it_had_never_been(engine: AnyEngine) -> None:
    spec = ProcessorSpec(mirostat_tau=2.0, repetition_penalty=1.5, window=6)
    engine.create_processor(1, spec)
    first = decode(engine, [1], 12)[0]
    engine.roll_back(1, 12)
    assert decode(engine, [1], 12)[0] == first
    with pytest.raises(
        BadArgumentError, match="accepted 12 tokens cannot take back 13"
    ):
        engine.roll_back(1, 13)


def test_forks_go_their_own_way(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec(presence_penalty=100.0))
    engine.accept_tokens(1, [5])
    engine.fork_processor(1, [2, 3])
    first = sample_once(engine, 1).token_ids.tolist()
    assert sample_once(engine, 2).token_ids.tolist() == first
    assert sample_once(engine, 1).token_ids.tolist() != first
    assert sample_once(engine, 3).token_ids.tolist() == first


def test_a_schema_is_kept_to_and_its_end_is_told(engine: AnyEngine) -> None:
    needs_grammars(engine)
    # Without spaces, of which a schema allows any number.
    bias = tuple((token, -math.inf) for token in b" \n\r\t")
    spec = ProcessorSpec("json-schema", SCHEMA, bias=bias)
    for number in (1, 2, 3):
        engine.create_processor(number, spec)
    samplers = [replace(DRAW, seed=seed) for seed in (1, 2, 3)]
    for tokens in decode(engine, [1, 2, 3], 120, samplers=samplers):
        value = json.loads(bytes(tokens))
        assert value["name"] in ("Ann", "Bob")
        assert isinstance(value["age"], bool)


def test_a_grammar_that_may_end_allows_the_end(engine: AnyEngine) -> None:
    needs_grammars(engine)
    engine.create_processor(1, ProcessorSpec("regex", "ab?"))
    assert bits(engine.allowed_tokens(1)) == {ord("a")}
    assert engine.accept_tokens(1, b"a") == 1
    assert bits(engine.allowed_tokens(1)) == {ord("b"), EOS}
    assert not engine.has_ended(1)
    assert engine.accept_tokens(1, [ord("b"), ord("b"), EOS]) == 1
    assert engine.has_ended(1)
    assert engine.accept_tokens(1, [EOS]) == 1
    engine.roll_back(1, 2)
    assert not engine.has_ended(1)
    assert bits(engine.allowed_tokens(1)) == {ord("b"), EOS}


def test_a_grammar_and_a_list_allow_what_both_do(engine: AnyEngine) -> None:
    needs_grammars(engine)
    spec = ProcessorSpec("regex", "[a-c]+", allowed_tokens=tuple(b"bcd"))
    engine.create_processor(1, spec)
    assert bits(engine.allowed_tokens(1)) == set(b"bc")
    assert set(decode(engine, [1], 20)[0]) == set(b"bc")
    assert engine.accept_tokens(1, b"ba") == 1


def test_where_nothing_is_left_one_request_fails_alone(engine: AnyEngine) -> None:
    needs_grammars(engine)
    engine.create_processor(1, ProcessorSpec("regex", "a+", allowed_tokens=(98,)))
    engine.create_processor(2, ProcessorSpec("regex", "a+"))
    contexts = [Context([0, 1, 2]), Context([3, 4, 5]), Context([6, 7, 8])]
    requests = (
        ask(contexts[0], PROMPT, 1),
        ask(contexts[1], PROMPT, 2),
        contexts[2].feed(PROMPT),
    )
    first, second, third = engine.execute(Batch(requests)).forwards
    assert isinstance(first, ProcessorError)
    assert "no token is left" in str(first)
    assert not isinstance(second, EngineError)
    assert second[0].token_ids.tolist() == [97]
    assert not isinstance(third, EngineError)


def test_a_broken_grammar_is_refused_with_its_reason(engine: AnyEngine) -> None:
    needs_grammars(engine)
    for kind, text in (("json-schema", "{"), ("regex", "("), ("nonsense", "a")):
        with pytest.raises(GrammarError, match=kind):
            engine.create_processor(1, ProcessorSpec(kind, text))
    engine.create_processor(1, ProcessorSpec())  # the number is free


def test_a_processor_of_no_row_or_several_is_refused(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec())
    for output in (
        OutputSpec(int32(0, 1), GREEDY, processor=1),
        OutputSpec(int32(0), None, processor=1),
    ):
        request = replace(Context([0]).feed(PROMPT[:2]), outputs=(output,))
        with pytest.raises(
            EngineError, match=r"request 0 .* needs a sampler and one row"
        ):
            engine.execute(Batch((request,)))


def test_unknown_and_used_numbers_are_refused(engine: AnyEngine) -> None:
    engine.create_processor(1, ProcessorSpec())
    with pytest.raises(EngineError, match="processor 1 is in use"):
        engine.create_processor(1, ProcessorSpec())
    with pytest.raises(EngineError, match="processor 1 is in use"):
        engine.fork_processor(1, [1])
    for number in (0, 7):
        with pytest.raises(EngineError, match=f"no processor {number}"):
            engine.accept_tokens(number, [1])
        with pytest.raises(EngineError, match=f"no processor {number}"):
            engine.has_ended(number)
        with pytest.raises(EngineError, match=f"no processor {number}"):
            engine.allowed_tokens(number)
    with pytest.raises(EngineError, match="no processor 7"):
        engine.fork_processor(7, [8])
    with pytest.raises(EngineError, match=r"request 0 .* processor 7 does not exist"):
        sample_once(engine, 7)
    context = Context([0, 1, 2])
    both = (ask(context, PROMPT, 1), ask(Context([3, 4, 5]), PROMPT, 1))
    with pytest.raises(EngineError, match=r"request 1 .* accepts in two rows"):
        engine.execute(Batch(both))
    with pytest.raises(BadArgumentError, match="token id should be in"):
        engine.accept_tokens(1, [258])
    engine.drop_processors([1, 1, 99])
    with pytest.raises(EngineError, match="no processor 1"):
        engine.roll_back(1, 0)


def test_several_rows_may_ask_one_processor_if_none_of_them_moves_it(
    engine: AnyEngine,
) -> None:
    engine.create_processor(1, ProcessorSpec(allowed_tokens=(80, 81, 82)))
    context = Context(range(8))
    outputs = tuple(
        OutputSpec(int32(1), SamplerSpec(20.0, seed=seed), processor=1)
        for seed in range(20)
    )
    request = replace(context.feed(PROMPT[:2]), outputs=outputs)
    (results,) = execute(engine, Batch((request,)))
    assert {int(result.token_ids[0]) for result in results} == {80, 81, 82}


def test_a_failed_forward_leaves_its_processor_alone() -> None:
    from pie_trio.inference.fake import FakeEngine

    engine = FakeEngine(broken_token_ids=[66])
    engine.create_processor(1, ProcessorSpec(presence_penalty=100.0))
    request = ask(Context([0]), [65, 66], 1)
    (outcome,) = engine.execute(Batch((request,))).forwards
    assert isinstance(outcome, EngineError)
    with pytest.raises(BadArgumentError, match="accepted 0 tokens"):
        engine.roll_back(1, 1)
