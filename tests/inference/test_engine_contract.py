"""What every Engine must do, over the fake and the real one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.engine_api import (
    Batch,
    BatchResult,
    ForwardRequest,
    OutputResult,
    OutputSpec,
    PageCopy,
    SamplerSpec,
)
from pie_trio.errors import AdapterError, EngineError
from tests.adapter_factory import write_adapter
from tests.inference.conftest import NUM_PAGES, PAGE_SIZE
from tests.inference.contexts import (
    GREEDY,
    Context,
    execute,
    first_outputs,
    generate,
    int32,
    page_lists,
    run,
)

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.engine_api import Engine

PROMPT = [256, *b"Once upon a time"]
PROMPTS = [
    PROMPT,
    [256],
    [256, *b"There was"],
    [256, *b"A much longer beginning, of which"],
]


def distribution(
    engine: Engine, request: ForwardRequest, *copies: PageCopy
) -> list[float]:
    """Return the probability of each token after the last row of a request."""
    (output,) = request.outputs
    output = replace(output, top_k=engine.info.vocab_size)
    batch = Batch((replace(request, outputs=(output,)),), copies)
    ((result,),) = execute(engine, batch)
    by_id = np.empty(engine.info.vocab_size)
    by_id[result.top_ids[-1]] = result.top_probs[-1]
    values: list[float] = by_id.tolist()
    return values


def same(first: list[float], second: list[float]) -> bool:
    return bool(np.allclose(first, second, atol=1e-5))


def test_the_info_is_that_of_the_model(engine: Engine) -> None:
    info = engine.info
    assert (info.page_size, info.num_pages, info.vocab_size) == (
        PAGE_SIZE,
        NUM_PAGES,
        258,
    )
    assert (info.bos_token_id, info.eos_token_ids) == (256, (257,))
    assert "forward" in info.traits


def test_results_have_the_shapes_and_types_that_were_asked_for(engine: Engine) -> None:
    requests = (
        Context([0, 1]).feed(b"pure", rows=None),
        Context([2, 3]).feed(b"tokens", rows=[0, 5, 5]),
        Context([4, 5]).feed(b"top", rows=[2, 1], sampler=None, top_k=3),
        Context([6, 7]).feed(b"both", rows=[3], top_k=7),
        Context([8, 9]).feed(b"no rows", rows=[], top_k=7),
        Context([10, 11]).feed(b"neither", rows=[0], sampler=None),
    )
    pure, *others = execute(engine, Batch(requests))
    assert pure == ()
    results = [outputs[0] for outputs in others]
    shapes = [(r.token_ids.shape, r.top_ids.shape, r.top_probs.shape) for r in results]
    assert shapes == [
        ((3,), (0,), (0,)),
        ((0,), (2, 3), (2, 3)),
        ((1,), (1, 7), (1, 7)),
        ((0,), (0, 7), (0, 7)),
        ((0,), (0,), (0,)),
    ]
    for result in results:
        assert result.token_ids.dtype == result.top_ids.dtype == np.int32
        assert result.top_probs.dtype == np.float32
    assert results[0].token_ids[1] == results[0].token_ids[2]
    assert results[2].token_ids[0] == results[2].top_ids[0, 0]


def test_top_probabilities_descend_and_sum_to_one(engine: Engine) -> None:
    request = Context(range(5)).feed(PROMPT, rows=range(len(PROMPT)), top_k=258)
    (result,) = first_outputs(engine, request)
    assert (np.diff(result.top_probs, axis=1) <= 0).all()
    np.testing.assert_allclose(result.top_probs.sum(axis=1), 1.0, rtol=1e-5)
    assert (np.sort(result.top_ids, axis=1) == np.arange(258)).all()
    assert result.token_ids.tolist() == result.top_ids[:, 0].tolist()


def test_an_empty_batch_gives_no_results(engine: Engine) -> None:
    assert engine.execute(Batch()) == BatchResult(())
    copies = (PageCopy(0, 1, 0, 0, 4),)
    assert engine.execute(Batch(copies=copies)) == BatchResult(())


def test_a_request_gives_the_same_tokens_alone_and_in_any_batch(engine: Engine) -> None:
    alone = [
        generate(engine, [Context(range(16))], [prompt], 20)[0] for prompt in PROMPTS
    ]
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)
    for chunk_size, stagger, seed in [
        (None, 0, None),
        (None, 2, 1),
        (3, 0, 2),
        (1, 1, 3),
    ]:
        contexts = [Context(pages) for pages in page_lists(4, 16, seed=seed)]
        together = generate(
            engine, contexts, PROMPTS, 20, chunk_size=chunk_size, stagger=stagger
        )
        assert together == alone


@pytest.mark.parametrize(
    "sampler",
    [
        SamplerSpec(temperature=1.0, seed=5),
        SamplerSpec(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, seed=2**64 - 1),
    ],
    ids=["plain", "filtered"],
)
def test_a_seed_gives_the_same_tokens_alone_and_in_any_batch(
    engine: Engine, sampler: SamplerSpec
) -> None:
    def tokens(**options: Any) -> list[list[int]]:
        contexts = [Context(pages) for pages in page_lists(4, 16)]
        return generate(engine, contexts, PROMPTS, 20, sampler=sampler, **options)

    alone = [
        generate(engine, [Context(range(16))], [prompt], 20, sampler=sampler)[0]
        for prompt in PROMPTS
    ]
    assert tokens() == tokens(stagger=3) == alone
    other = replace(sampler, seed=6)
    contexts = [Context(pages) for pages in page_lists(4, 16)]
    assert generate(engine, contexts, PROMPTS, 20, sampler=other) != alone


def test_rows_with_and_without_a_sampler_share_a_batch(engine: Engine) -> None:
    sampler = SamplerSpec(temperature=1.0, seed=9)
    specs = [GREEDY, sampler, None]
    requests = [
        Context(pages).feed(PROMPT, sampler=spec)
        for pages, spec in zip(page_lists(3, 8), specs, strict=True)
    ]
    results = first_outputs(engine, *requests)
    for request, together in zip(requests, results, strict=True):
        (alone,) = first_outputs(engine, request)
        assert alone.token_ids.tolist() == together.token_ids.tolist()


def test_shared_pages_serve_several_contexts(engine: Engine) -> None:
    prefix = PROMPT[: 2 * PAGE_SIZE]
    run(engine, Context([7, 3]).feed(prefix))
    branches = [Context([7, 3, page], kv_len=len(prefix)) for page in (1, 2)]
    found = run(engine, *(b.feed([t]) for b, t in zip(branches, (65, 66), strict=True)))
    for token_id, expected in zip((65, 66), found, strict=True):
        assert run(engine, Context([10, 11, 12]).feed([*prefix, token_id])) == [
            expected
        ]


def test_a_fork_in_the_middle_of_a_page_goes_its_own_way(engine: Engine) -> None:
    parent = Context(range(8))
    first = generate(engine, [parent], [PROMPT], 3)[0]
    child, copies = parent.fork([20, 21, 22], PAGE_SIZE)
    assert copies
    found = run(engine, parent.feed([first[-1]]), child.feed([65]), copies=copies)
    for last, expected in zip((first[-1], 65), found, strict=True):
        prompt = [*PROMPT, *first[:-1], last]
        assert run(engine, Context(range(30, 40)).feed(prompt)) == [expected]


def test_copies_run_before_the_forwards_and_in_order(engine: Engine) -> None:
    run(engine, Context([0, 1]).feed(PROMPT[:6]))
    copies = [
        PageCopy(0, 5, 0, 0, 4),
        PageCopy(1, 6, 0, 0, 2),
        PageCopy(5, 9, 0, 0, 4),  # what the first copy wrote
    ]
    context = Context([9, 6], kv_len=6)
    expected = run(engine, Context([20, 21]).feed(PROMPT[:7]))
    assert run(engine, context.feed(PROMPT[6:7]), copies=copies) == expected


def test_copied_tokens_keep_their_positions_in_other_slots(engine: Engine) -> None:
    """The context moves up by one slot; the free slot before it is masked."""
    run(engine, Context([0]).feed(PROMPT[:3]))
    run(engine, Context([1]).feed(b"junk"))
    request = Context([1, 2], kv_len=4).feed(
        PROMPT[3:4], positions=[3], mask=np.array([[False, True, True, True, True]])
    )
    found = distribution(engine, request, PageCopy(0, 1, 0, 1, 3))
    assert same(found, distribution(engine, Context([8]).feed(PROMPT[:4])))


def test_a_copy_within_a_page_may_overlap(engine: Engine) -> None:
    run(engine, Context([0]).feed(PROMPT[:3]))
    mask = np.array([[False, True, True, True, True]])
    request = Context([0, 2], kv_len=4).feed(PROMPT[3:4], positions=[3], mask=mask)
    found = distribution(engine, request, PageCopy(0, 0, 0, 1, 3))
    assert same(found, distribution(engine, Context([8]).feed(PROMPT[:4])))


def test_a_wrong_page_changes_the_result(engine: Engine) -> None:
    run(engine, Context([0, 1]).feed(PROMPT[:7]))
    run(engine, Context([2]).feed(b"junk"))
    right = distribution(engine, Context([0, 1], 7).feed([65]))
    assert not same(right, distribution(engine, Context([2, 1], 7).feed([65])))
    assert not same(right, distribution(engine, Context([1, 0], 7).feed([65])))


def test_a_gap_in_the_positions_changes_the_result(engine: Engine) -> None:
    def found(positions: list[int]) -> list[float]:
        return distribution(engine, Context([0]).feed(PROMPT[:3], positions=positions))

    assert same(found([0, 1, 2]), found([0, 1, 2]))
    assert not same(found([0, 1, 2]), found([0, 1, 5]))


def test_positions_beyond_the_maximum_are_allowed(engine: Engine) -> None:
    last = 2**31 - 1
    request = Context([0]).feed(
        PROMPT[:3], positions=[0, engine.info.max_positions, last]
    )
    assert sum(distribution(engine, request)) == pytest.approx(1.0, abs=1e-4)


def test_the_default_mask_is_causal(engine: Engine) -> None:
    causal = np.tri(7, dtype=np.bool_)
    default = distribution(engine, Context([0, 1]).feed(PROMPT[:7]))
    explicit = distribution(engine, Context([2, 3]).feed(PROMPT[:7], mask=causal))
    assert same(default, explicit)
    run(engine, Context([4, 5]).feed(PROMPT[:3]))
    rest = Context([4, 5], 3).feed(PROMPT[3:7], mask=causal[3:])
    assert same(default, distribution(engine, rest))


@pytest.mark.parametrize("num_new", [1, 3], ids=["decode", "chunk"])
def test_masked_slots_are_as_if_they_were_not_there(
    engine: Engine, num_new: int
) -> None:
    tokens = PROMPT[:9]
    run(engine, Context([0, 1, 2]).feed([*b"junk", *tokens[1:6]]))
    mask = np.tri(num_new, 9 + num_new, 9, dtype=np.bool_)
    mask[:, :4] = False
    # What was written before saw the hidden page, so write it again without.
    kept = Context([5, 6, 7])
    run(engine, kept.feed(tokens[1:6], positions=range(4, 9)))
    copies = [PageCopy(5, 1, 0, 0, 4), PageCopy(6, 2, 0, 0, 1)]
    new = Context([0, 1, 2], 9).feed(tokens[6 : 6 + num_new], mask=mask)
    hidden = distribution(engine, new, *copies)
    positions = range(9, 9 + num_new)
    absent = kept.feed(tokens[6 : 6 + num_new], positions=positions)
    assert same(hidden, distribution(engine, absent))


def test_a_mask_may_look_forward(engine: Engine) -> None:
    everything = np.ones((4, 4), np.bool_)
    request = Context([0]).feed(PROMPT[:4], mask=everything)
    forward = distribution(engine, replace(request, outputs=(OutputSpec(int32(0)),)))
    alone = distribution(engine, Context([1]).feed(PROMPT[:4], rows=[0]))
    assert not same(forward, alone)


def test_a_mask_of_one_request_does_not_touch_the_others(engine: Engine) -> None:
    plain = [Context(pages).feed(PROMPT) for pages in page_lists(3, 8)]
    expected = run(engine, *plain)
    mask = np.eye(len(PROMPT), dtype=np.bool_)
    masked = [plain[0], replace(plain[1], mask=mask), plain[2]]
    assert run(engine, *masked)[::2] == expected[::2]


def test_long_masked_stretches_are_finite(engine: Engine) -> None:
    """Whole blocks of a kernel are hidden then, and no row may become NaN."""
    num_slots = NUM_PAGES * PAGE_SIZE
    context = Context(range(NUM_PAGES))
    run(engine, context.feed([65] * (num_slots - 3)))
    mask = np.zeros((3, num_slots), np.bool_)
    mask[:, -3:] = np.eye(3, dtype=np.bool_)
    assert sum(
        distribution(engine, context.feed([66] * 3, mask=mask))
    ) == pytest.approx(1, abs=1e-4)


def valid_request(**changes: Any) -> ForwardRequest:
    request = Context([0, 1]).feed(PROMPT[:3], top_k=2)
    return replace(request, **changes)


BAD_REQUESTS = {
    "page-too-large": (
        valid_request(page_ids=int32(64)),
        r"page id should be in \[0, 64\)",
    ),
    "page-negative": (valid_request(page_ids=int32(-1)), "page id should be"),
    "too-few-pages": (
        valid_request(page_ids=int32()),
        "kv_len 3 does not fit in 0 pages",
    ),
    "kv-len-beyond-pages": (
        valid_request(kv_len=9),
        "kv_len 9 does not fit in 2 pages of 4",
    ),
    "kv-len-too-small": (
        valid_request(kv_len=2),
        "kv_len should count the 3 new tokens",
    ),
    "position-negative": (
        valid_request(positions=int32(0, -1, 2)),
        "position should be 0 or",
    ),
    "positions-too-few": (
        valid_request(positions=int32(0, 1)),
        "3 token_ids need as many",
    ),
    "token-too-large": (
        valid_request(token_ids=int32(1, 258, 2)),
        r"in \[0, 258\), but one is 258",
    ),
    "token-negative": (valid_request(token_ids=int32(1, -1, 2)), "token id should be"),
    "no-tokens": (
        valid_request(token_ids=int32(), positions=int32()),
        "at least one new token",
    ),
    "mask-shape": (
        valid_request(mask=np.ones((3, 4), np.bool_)),
        r"mask should be bool \[3, 3\]",
    ),
    "mask-type": (valid_request(mask=np.ones((3, 3))), "mask should be bool"),
    "mask-row-empty": (
        valid_request(mask=np.tri(3, k=-1, dtype=np.bool_)),
        "row 0 of the mask",
    ),
    "row-too-large": (
        valid_request(outputs=(OutputSpec(int32(3)),)),
        r"row should be in \[0, 3\)",
    ),
    "row-negative": (
        valid_request(outputs=(OutputSpec(int32(-1)),)),
        "row should be in",
    ),
    "top-k-too-large": (
        valid_request(outputs=(OutputSpec(int32(0), None, 259),)),
        r"top_k .* \[0, 258\]",
    ),
    "top-k-negative": (
        valid_request(outputs=(OutputSpec(int32(0), None, -1),)),
        "top_k of the outputs",
    ),
    "input-slots-too-few": (
        valid_request(input_slots=int32(1)),
        "3 token_ids need as many input_slots",
    ),
    "input-slots-type": (
        valid_request(input_slots=np.zeros(3)),
        "input_slots should be",
    ),
    "store-too-few": (
        valid_request(outputs=(OutputSpec(int32(0, 1), store=int32(1)),)),
        "2 rows need as many store",
    ),
    "adapter": (valid_request(adapter="poet"), "the adapter 'poet' is not loaded"),
    "wide-integers": (
        valid_request(token_ids=np.arange(3)),
        "token_ids should be a vector of int32",
    ),
    "two-dimensions": (
        valid_request(page_ids=np.zeros((1, 1), np.int32)),
        "page_ids should be a",
    ),
    "same-slot-twice": (
        valid_request(
            page_ids=int32(5, 5),
            kv_len=8,
            token_ids=int32(*range(8)),
            positions=int32(*range(8)),
        ),
        "written to page 5, offset 0",
    ),
}
BAD_SAMPLERS = {
    "temperature-negative": SamplerSpec(temperature=-1.0),
    "temperature-nan": SamplerSpec(temperature=float("nan")),
    "temperature-infinite": SamplerSpec(temperature=float("inf")),
    "top_k-negative": SamplerSpec(top_k=-1),
    "top_p-nan": SamplerSpec(top_p=float("nan")),
    "top_p-large": SamplerSpec(top_p=1.5),
    "min_p-negative": SamplerSpec(min_p=-0.1),
}
BAD_COPIES = {
    "source": PageCopy(64, 0, 0, 0, 1),
    "target": PageCopy(0, -1, 0, 0, 1),
    "source-offset": PageCopy(0, 1, 2, 0, 3),
    "target-offset": PageCopy(0, 1, 0, 2, 3),
    "negative-offset": PageCopy(0, 1, -1, 0, 1),
    "count": PageCopy(0, 1, 0, 0, 0),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_an_impossible_request_is_refused_by_name(engine: Engine, case: str) -> None:
    request, message = BAD_REQUESTS[case]
    with pytest.raises(EngineError, match=message) as caught:
        engine.execute(Batch((Context([9]).feed(PROMPT[:1]), request)))
    assert "request 1" in str(caught.value) or case == "same-slot-twice"


@pytest.mark.parametrize("case", BAD_SAMPLERS)
def test_an_impossible_sampler_is_refused(engine: Engine, case: str) -> None:
    request = Context([0]).feed(PROMPT[:1], sampler=BAD_SAMPLERS[case])
    with pytest.raises(EngineError, match=case.split("-")[0]):
        engine.execute(Batch((request,)))


@pytest.mark.parametrize("case", BAD_COPIES)
def test_an_impossible_copy_is_refused(engine: Engine, case: str) -> None:
    with pytest.raises(EngineError, match="copy 1 of the batch"):
        engine.execute(Batch((), (PageCopy(0, 1, 0, 0, 4), BAD_COPIES[case])))


def test_a_refused_batch_writes_nothing_and_the_engine_goes_on(engine: Engine) -> None:
    context = Context([0, 1])
    run(engine, context.feed(PROMPT[:6]))
    bad = valid_request(page_ids=int32(99))
    with pytest.raises(EngineError):
        engine.execute(
            Batch((Context([0]).feed(b"over"), bad), (PageCopy(1, 0, 0, 0, 2),))
        )
    expected = run(engine, Context([8, 9]).feed(PROMPT[:7]))
    assert run(engine, context.feed(PROMPT[6:7])) == expected


def test_two_requests_must_not_write_the_same_slot(engine: Engine) -> None:
    requests = (Context([3]).feed(b"ab"), Context([3]).feed(b"abc"))
    with pytest.raises(EngineError, match="written to page 3, offset 0"):
        engine.execute(Batch(requests))


def test_closing_twice_is_fine_and_a_closed_engine_refuses(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="is closed"):
        engine.execute(Batch(()))


def test_results_stay_as_they_are_when_the_engine_goes_on(engine: Engine) -> None:
    def snapshot(result: OutputResult) -> list[Any]:
        values = [getattr(result, name) for name in result.__slots__]
        return [np.asarray(value).tolist() for value in values]

    request = Context(range(8)).feed(PROMPT, top_k=4, logits=True, hidden=True)
    (result,) = first_outputs(engine, request)
    before = snapshot(result)
    generate(engine, [Context(range(16))], [[256, *b"other"]], 5)
    assert snapshot(result) == before


@pytest.fixture
def adapter(
    request: pytest.FixtureRequest,
    engine: Engine,
    tiny_llama: Path,
    untied_llama: Path,
    tmp_path: Path,
) -> Path:
    """An adapter for the engine's model."""
    is_untied = "untied" in request.node.callspec.params["engine"]
    return write_adapter(tmp_path / "a", untied_llama if is_untied else tiny_llama)


def test_adapters_come_and_go_between_steps(engine: Engine, adapter: Path) -> None:
    assert "adapters" in engine.info.traits

    def tokens(name: str) -> list[int]:
        return generate(engine, [Context(range(8))], [PROMPT], 8, adapter=name)[0]

    plain = tokens("")
    engine.load_adapter("one", adapter)
    engine.load_adapter("also/one", adapter)
    assert [*engine.info.adapters] == ["one", "also/one"]
    assert tokens("one") == tokens("also/one") != plain
    engine.drop_adapter("one")
    assert [*engine.info.adapters] == ["also/one"]
    with pytest.raises(EngineError, match="'one' is not loaded"):
        tokens("one")
    assert tokens("also/one") != plain == tokens("")


def test_forwards_with_and_without_an_adapter_share_a_batch(
    engine: Engine, adapter: Path
) -> None:
    engine.load_adapter("one", adapter)
    alone = [
        run(engine, Context(range(8)).feed(PROMPT, adapter=name))[0]
        for name in ("", "one")
    ]
    requests = [
        Context(range(8 * i, 8 * i + 8)).feed(PROMPT, adapter=name)
        for i, name in enumerate(("one", "", "one"))
    ]
    assert run(engine, *requests) == [alone[1], alone[0], alone[1]]


def test_a_name_of_an_adapter_stands_for_the_same_files(
    engine: Engine, adapter: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    engine.load_adapter("one", adapter)
    with pytest.raises(AdapterError, match="there is an adapter one already"):
        engine.load_adapter("one", adapter)
    engine.drop_adapter("one")
    other = write_adapter(tmp_path / "b", tiny_llama, seed=5)
    with pytest.raises(AdapterError, match="from other files before"):
        engine.load_adapter("one", other)
    engine.load_adapter("one", adapter)
    assert engine.info.adapters == ("one",)


def test_impossible_adapters_are_refused(
    engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    for name in ("", "-x", "a=b", "a:b", "a b"):
        with pytest.raises(AdapterError, match="the name of an adapter"):
            engine.load_adapter(name, adapter)
    with pytest.raises(AdapterError, match=r"adapter_config\.json: No such file"):
        engine.load_adapter("none", tmp_path / "nothing")
    with pytest.raises(AdapterError, match="no adapter x to drop: loaded are none"):
        engine.drop_adapter("x")
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.load_adapter("late", adapter)
