"""What every Engine must do with outputs, hidden states, projections and the bytes of pages."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.engine_api import (
    NO_SLOT,
    Batch,
    ForwardRequest,
    OutputResult,
    OutputSpec,
    ProjectRequest,
    SamplerSpec,
)
from pie_trio.errors import EngineError
from tests.inference.conftest import NUM_EMBEDS, NUM_PAGES
from tests.inference.contexts import (
    GREEDY,
    Context,
    execute,
    first_outputs,
    int32,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.fake import FakeEngine

    AnyEngine = FakeEngine | TorchEngine

PROMPT = [256, *b"Once upon a time"]
DRAW = SamplerSpec(temperature=1.0, seed=11)
ARRAYS = [field for field in fields(OutputResult) if field.name != "has_ended"]


def project(
    slots: Sequence[int],
    positions: Sequence[int],
    sampler: SamplerSpec | None = GREEDY,
    **more: Any,
) -> ProjectRequest:
    """Return a projection with one output for all slots."""
    rows = np.arange(len(slots), dtype=np.int32)
    outputs = (OutputSpec(rows, sampler, **more),)
    return ProjectRequest(int32(*slots), int32(*positions), outputs)


WRONG_TYPE: Any = np.zeros(1)


def store(engine: AnyEngine, slot: int, token_ids: Sequence[int]) -> NDArray[Any]:
    """Store the last state of a context of its own, and return its logits."""
    request = Context(range(40, 50)).feed(token_ids, store=int32(slot), logits=True)
    logits: NDArray[Any] = first_outputs(engine, request)[0].logits[0]
    return logits


def assert_same(found: OutputResult, expected: OutputResult) -> None:
    for field in ARRAYS:
        first, second = getattr(found, field.name), getattr(expected, field.name)
        assert (first.shape, first.dtype) == (second.shape, second.dtype), field.name
        np.testing.assert_allclose(first, second, atol=2e-5, err_msg=field.name)


def test_the_info_tells_the_sizes(engine: AnyEngine) -> None:
    info = engine.info
    assert info.num_embeds == NUM_EMBEDS
    assert info.adapters == ()
    (result,) = first_outputs(engine, Context([0]).feed(b"a", hidden=True))
    assert result.hidden.shape == (1, info.hidden_size)
    assert engine.read_pages(int32(0)).shape == (1, info.page_bytes)


def test_each_output_holds_what_it_asked_for_and_nothing_else(
    engine: AnyEngine,
) -> None:
    vocab_size, hidden_size = engine.info.vocab_size, engine.info.hidden_size
    rows = int32(2, 0, 2)
    shapes: dict[str, tuple[OutputSpec, dict[str, tuple[int, ...]]]] = {
        "nothing": (OutputSpec(rows), {}),
        "tokens": (OutputSpec(rows, DRAW), {"token_ids": (3,)}),
        "top": (OutputSpec(rows, top_k=4), {"top_ids": (3, 4), "top_probs": (3, 4)}),
        "logprobs": (
            OutputSpec(rows, GREEDY, logprobs=True),
            {"token_ids": (3,), "logprobs": (3,)},
        ),
        "logprobs-of-no-token": (OutputSpec(rows, logprobs=True), {}),
        "entropy": (OutputSpec(rows, entropy=True), {"entropy": (3,)}),
        "logits": (OutputSpec(rows, logits=True), {"logits": (3, vocab_size)}),
        "hidden": (OutputSpec(rows, hidden=True), {"hidden": (3, hidden_size)}),
        "store": (OutputSpec(rows, store=int32(0, 1, 2)), {}),
        "no-rows": (OutputSpec(int32(), logits=True), {"logits": (0, vocab_size)}),
    }
    outputs = tuple(spec for spec, _ in shapes.values())
    request = replace(Context([0]).feed(PROMPT[:3]), outputs=outputs)
    other = Context([1]).feed(PROMPT[:2], rows=[1])
    ((*results,), _) = execute(engine, Batch((request, other)))
    for name, result in zip(shapes, results, strict=True):
        for field in ARRAYS:
            found: NDArray[Any] = getattr(result, field.name)
            assert found.shape == shapes[name][1].get(field.name, (0,)), name
            is_id = field.name.endswith("ids")
            assert found.dtype == (np.int32 if is_id else np.float32)


def test_the_numbers_are_those_of_the_logits(engine: AnyEngine) -> None:
    for sampler in (GREEDY, DRAW):
        request = Context(range(5)).feed(
            PROMPT,
            rows=range(len(PROMPT)),
            sampler=sampler,
            top_k=258,
            logprobs=True,
            entropy=True,
            logits=True,
        )
        (found,) = first_outputs(engine, request)
        logits = found.logits.astype(np.float64)
        probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        rows = np.arange(len(PROMPT))
        expected = np.log(probs[rows, found.token_ids])
        np.testing.assert_allclose(found.logprobs, expected, atol=1e-5)
        expected = -(probs * np.log(probs)).sum(axis=1)
        np.testing.assert_allclose(found.entropy, expected, atol=1e-5)
        expected = np.take_along_axis(probs, found.top_ids, axis=1)
        np.testing.assert_allclose(found.top_probs, expected, atol=1e-6)
        if sampler is GREEDY:
            assert found.token_ids.tolist() == logits.argmax(axis=1).tolist()


def test_several_draws_from_a_row_are_those_of_each_alone(engine: AnyEngine) -> None:
    samplers = [replace(DRAW, seed=seed) for seed in range(12)]
    alone = [
        run(engine, Context(range(5)).feed(PROMPT, sampler=sampler))[0]
        for sampler in samplers
    ]
    row = int32(len(PROMPT) - 1)
    outputs = tuple(OutputSpec(row, sampler) for sampler in samplers)
    request = replace(Context(range(5)).feed(PROMPT), outputs=outputs)
    (found,) = execute(engine, Batch((request,)))
    assert [int(result.token_ids[0]) for result in found] == alone
    assert len(set(alone)) > 1


SPECS = st.builds(
    lambda rows, **options: OutputSpec(int32(*rows), **options),
    rows=st.lists(st.integers(0, 2), max_size=3),
    sampler=st.sampled_from(
        [None, GREEDY, DRAW, SamplerSpec(temperature=0.7, top_k=9, seed=4)]
    ),
    top_k=st.sampled_from([0, 1, 6]),
    logprobs=st.booleans(),
    entropy=st.booleans(),
    logits=st.booleans(),
    hidden=st.booleans(),
)
REQUESTS = st.tuples(st.booleans(), st.lists(SPECS, max_size=3))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(requests=st.lists(REQUESTS, max_size=4))
def test_an_output_is_the_same_alone_and_beside_any_others(
    engine: AnyEngine, requests: list[tuple[bool, list[OutputSpec]]]
) -> None:
    engine.store_tokens(int32(0, 1, 2), int32(*b"abc"))

    def make(index: int, outputs: Sequence[OutputSpec]) -> Batch:
        if requests[index][0]:
            positions = int32(*range(index, index + 3))
            projection = ProjectRequest(int32(0, 1, 2), positions, tuple(outputs))
            return Batch(projections=(projection,))
        forward = Context([index]).feed([*b"xyz"[:2], index])
        return Batch((replace(forward, outputs=tuple(outputs)),))

    alone = [
        [execute(engine, make(index, [spec]))[0][0] for spec in specs]
        for index, (_, specs) in enumerate(requests)
    ]
    batches = [make(index, specs) for index, (_, specs) in enumerate(requests)]
    together = engine.execute(
        Batch(
            sum((batch.forwards for batch in batches), ()),
            projections=sum((batch.projections for batch in batches), ()),
        )
    )
    forwards, projections = iter(together.forwards), iter(together.projections)
    for (is_projection, _), expected in zip(requests, alone, strict=True):
        found = next(projections if is_projection else forwards)
        assert not isinstance(found, EngineError)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_a_stored_state_is_projected_to_what_the_forward_itself_gave(
    engine: AnyEngine,
) -> None:
    num_tokens = len(PROMPT)
    more: dict[str, Any] = {
        "top_k": 5,
        "logprobs": True,
        "entropy": True,
        "logits": True,
        "hidden": True,
    }
    slots = [(5 * row + 3) % NUM_EMBEDS for row in range(NUM_EMBEDS)]
    rows = range(num_tokens - NUM_EMBEDS, num_tokens)
    request = Context(range(5)).feed(
        PROMPT, rows=rows, sampler=DRAW, store=int32(*slots), **more
    )
    (expected,) = first_outputs(engine, request)
    batch = Batch(projections=(project(slots, rows, DRAW, **more),))
    ((found,),) = execute(engine, batch)
    assert_same(found, expected)
    # And in a batch with forwards, in two requests, one of them backwards.
    projections = (
        project(slots[:4], rows[:4], DRAW, **more),
        project(slots[:3:-1], rows[:3:-1], DRAW, **more),
    )
    _, first, second = execute(
        engine, Batch((Context([9]).feed(b"x"),), projections=projections)
    )
    for field in ARRAYS:
        one, two = getattr(first[0], field.name), getattr(second[0], field.name)
        whole = np.concatenate((one, two[::-1]))
        np.testing.assert_allclose(whole, getattr(expected, field.name), atol=2e-5)


def test_a_stored_state_stays_until_it_is_stored_anew(engine: AnyEngine) -> None:
    logits = {slot: store(engine, slot, PROMPT[: slot + 1]) for slot in (3, 5)}
    logits[3] = store(engine, 3, PROMPT)
    ((found,),) = execute(
        engine, Batch(projections=(project([3, 5], [0, 0], None, logits=True),))
    )
    np.testing.assert_allclose(found.logits[0], logits[3], atol=2e-5)
    np.testing.assert_allclose(found.logits[1], logits[5], atol=2e-5)


def test_a_projection_may_store_what_it_reads_elsewhere(engine: AnyEngine) -> None:
    logits = store(engine, 3, PROMPT)
    copy = project([3], [0], None, store=int32(8))
    execute(engine, Batch(projections=(copy,)))
    store(engine, 3, b"other")
    ((found,),) = execute(
        engine, Batch(projections=(project([8], [0], None, logits=True),))
    )
    np.testing.assert_allclose(found.logits[0], logits, atol=2e-5)


def test_the_embedding_of_a_token_acts_as_the_token(engine: AnyEngine) -> None:
    engine.store_tokens(int32(4, 2, 9), int32(*PROMPT[1:3], PROMPT[6]))
    plain, mixed = Context([0, 1]), Context([2, 3])
    slots = [NO_SLOT, 4, 2, NO_SLOT, NO_SLOT]
    wrong_ids = [PROMPT[0], 0, 0, *PROMPT[3:5]]
    beside = Context([4, 5]).feed(PROMPT[:5])
    requests = (beside, mixed.feed(wrong_ids, input_slots=slots, logits=True))
    found = first_outputs(engine, *requests)[1]
    (expected,) = first_outputs(engine, plain.feed(PROMPT[:5], logits=True))
    np.testing.assert_allclose(found.logits, expected.logits, atol=2e-5)
    # Keys and values, too.
    assert_pages_are_near(engine, [0, 1], [2, 3])
    found, expected = first_outputs(
        engine,
        mixed.feed([0], input_slots=[9], logits=True),
        plain.feed([PROMPT[6]], logits=True),
    )
    np.testing.assert_allclose(found.logits, expected.logits, atol=2e-5)
    assert_pages_are_near(engine, [0, 1], [2, 3])


def assert_pages_are_near(
    engine: AnyEngine, first: Sequence[int], second: Sequence[int]
) -> None:
    pages = [engine.read_pages(int32(*pages)) for pages in (first, second)]
    if engine.info.name == "fake":
        assert pages[0].tolist() == pages[1].tolist()
    else:
        numbers = [page.view(np.float32) for page in pages]
        np.testing.assert_allclose(numbers[0], numbers[1], atol=2e-5)


def test_a_stored_state_enters_as_it_is_and_at_the_new_position(
    engine: AnyEngine,
) -> None:
    def feed(slot: int, position: int) -> NDArray[Any]:
        context = Context([20, 21])
        run(engine, context.feed(b"abc"))
        request = context.feed(
            [0], input_slots=[slot], positions=[position], logits=True
        )
        return first_outputs(engine, request)[0].logits

    store(engine, 0, b"one")
    store(engine, 1, b"two")
    assert np.allclose(feed(0, 3), feed(0, 3))
    assert not np.allclose(feed(0, 3), feed(1, 3), atol=1e-3)
    assert not np.allclose(feed(0, 3), feed(0, 90), atol=1e-4)
    execute(engine, Batch(projections=(project([0], [0], None, store=int32(7)),)))
    assert np.allclose(feed(0, 3), feed(7, 3))


def batch_of(forward: ForwardRequest, *projections: ProjectRequest) -> Batch:
    return Batch((Context([9]).feed(b"x"), forward), projections=projections)


def stored(*slots: int) -> ForwardRequest:
    rows = range(len(slots))
    return Context([0, 1]).feed(b"abcde", rows=rows, store=int32(*slots))


def read(*slots: int) -> ForwardRequest:
    return Context([2, 3]).feed([0] * len(slots), input_slots=slots)


PLAIN = Context([5]).feed(b"p")
BAD_BATCHES = {
    "store-too-large": (batch_of(stored(NUM_EMBEDS)), r"stored .* \[0, 16\)"),
    "store-negative": (batch_of(stored(0, -1)), "stored hidden state"),
    "store-twice": (batch_of(stored(3, 4, 3)), "two rows .* stored in slot 3"),
    "store-twice-by-two": (
        batch_of(stored(3), project([1], [0], store=int32(3))),
        "two rows .* stored in slot 3",
    ),
    "input-too-large": (batch_of(read(NUM_EMBEDS)), "input hidden state .* one of"),
    "input-negative": (batch_of(read(0, -2)), r"batch is -2"),
    "input-of-what-is-stored": (
        Batch((stored(1, 2), read(0, 2))),
        "slot 2 is both stored and read",
    ),
    "projection-of-what-is-stored": (
        batch_of(stored(1, 2), project([0, 1], [0, 0])),
        "slot 1 is both stored and read",
    ),
    "projection-too-large": (
        batch_of(PLAIN, project([NUM_EMBEDS], [0])),
        "projected hidden state",
    ),
    "projection-negative": (batch_of(PLAIN, project([-1], [0])), "projected"),
    "projection-positions": (
        batch_of(PLAIN, project([1, 2], [0])),
        "projection 0 of the batch: 2 slots need as many positions",
    ),
    "projection-position-negative": (
        batch_of(PLAIN, project([1], [-3])),
        "projection 0 .*: a position should be 0 or more, but one is -3",
    ),
    "projection-row": (
        batch_of(
            PLAIN,
            project([1], [0]),
            ProjectRequest(int32(1), int32(0), (OutputSpec(int32(1)),)),
        ),
        r"projection 1 .*: an output row should be in \[0, 1\), but one is 1",
    ),
    "projection-slots-type": (
        batch_of(PLAIN, replace(project([1], [0]), slots=WRONG_TYPE)),
        "projection 0 of the batch: slots should be a vector of int32",
    ),
    "projection-sampler": (
        batch_of(PLAIN, project([1], [0], SamplerSpec(top_p=2.0))),
        "projection 0 of the batch: the sampler's top_p",
    ),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_an_impossible_batch_is_refused_and_writes_nothing(
    engine: AnyEngine, case: str
) -> None:
    batch, message = BAD_BATCHES[case]
    engine.store_tokens(np.arange(NUM_EMBEDS, dtype=np.int32), int32(*range(65, 81)))
    states = project(range(NUM_EMBEDS), [0] * NUM_EMBEDS, None, hidden=True)

    def everything() -> list[Any]:
        ((result,),) = execute(engine, Batch(projections=(states,)))
        pages = np.arange(NUM_PAGES, dtype=np.int32)
        return [result.hidden.tolist(), engine.read_pages(pages).tolist()]

    before = everything()
    with pytest.raises(EngineError, match=message):
        engine.execute(batch)
    assert everything() == before


def test_pages_that_were_read_can_be_put_elsewhere(engine: AnyEngine) -> None:
    context = Context([7, 3, 5, 1, 9])
    run(engine, context.feed(PROMPT[:-1]))
    before = engine.read_pages(int32(30, 31))
    data = engine.read_pages(context.page_ids)
    kept = data.copy()
    expected = run(engine, context.feed(PROMPT[-1:]))
    run(engine, Context(range(12)).feed(range(40)))  # over the old pages
    assert data.tolist() == kept.tolist()
    moved = Context([20, 4, 0, 13, 60], kv_len=len(PROMPT) - 1)
    engine.write_pages(moved.page_ids, data)
    assert engine.read_pages(moved.page_ids).tolist() == kept.tolist()
    assert engine.read_pages(int32(30, 31)).tolist() == before.tolist()
    assert run(engine, moved.feed(PROMPT[-1:])) == expected


def test_pages_may_be_read_twice_and_data_may_be_a_view(engine: AnyEngine) -> None:
    run(engine, Context([0, 1]).feed(PROMPT[:8]))
    data = engine.read_pages(int32(1, 0, 1))
    assert data[0].tolist() == data[2].tolist() != data[1].tolist()
    data.flags.writeable = False
    engine.write_pages(int32(5, 6), data[:2][::-1])
    assert engine.read_pages(int32(6, 5)).tolist() == data[:2].tolist()


def test_no_pages_are_no_bytes(engine: AnyEngine) -> None:
    data = engine.read_pages(int32())
    assert data.shape == (0, engine.info.page_bytes)
    assert data.dtype == np.uint8
    engine.write_pages(int32(), data)


def test_impossible_pages_are_refused(engine: AnyEngine) -> None:
    data = engine.read_pages(int32(0, 1))
    for page_ids in (int32(64), int32(0, -1)):
        with pytest.raises(EngineError, match=r"page id should be in \[0, 64\)"):
            engine.read_pages(page_ids)
        with pytest.raises(EngineError, match=r"page id should be in \[0, 64\)"):
            engine.write_pages(page_ids, data[: len(page_ids)])
    with pytest.raises(EngineError, match="vector of int32"):
        engine.read_pages(np.zeros((1, 1), np.int32))
    with pytest.raises(EngineError, match="page 3 occurs twice"):
        engine.write_pages(int32(3, 3), data)
    wrong: list[Any] = [data[:1], data[:, 1:], data.view(np.int8)]
    for bad in wrong:
        with pytest.raises(EngineError, match="data of the pages should be uint8"):
            engine.write_pages(int32(0, 1), bad)
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.read_pages(int32(0))
    with pytest.raises(EngineError, match="is closed"):
        engine.write_pages(int32(0, 1), data)
