"""Batches and results come out as they went in, whatever their shapes."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.engines import messages
from pie_trio.application.engines.messages import (
    BatchReader,
    BatchWriter,
    pack_error,
    pack_result,
    unpack_error,
    unpack_result,
)
from pie_trio.engine_api import (
    Batch,
    BatchResult,
    ForwardRequest,
    OutputResult,
    OutputSpec,
    PageCopy,
    ProjectRequest,
    SamplerSpec,
)
from pie_trio.errors import (
    EngineError,
    GrammarError,
    PieError,
    ProcessorError,
    UnknownHandleError,
)


def same(one: Any, other: Any) -> bool:
    """Say whether two messages are equal, their arrays' types and shapes included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return bool(
            one.dtype == other.dtype
            and one.shape == other.shape
            and (one == other).all()
        )
    if isinstance(one, PieError):
        return str(one) == str(other) and one.__dict__ == other.__dict__
    if is_dataclass(one):
        return all(
            same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)
        )
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def crossed(message: Any) -> Any:
    return pickle.loads(pickle.dumps(message, 5))


def integers(size: int, dtype: Any = np.int32) -> st.SearchStrategy[Any]:
    numbers = st.lists(st.integers(0, 999), min_size=size, max_size=size)
    return numbers.map(lambda found: np.array(found, dtype))


@st.composite
def specs(draw: st.DrawFn) -> OutputSpec:
    rows = draw(integers(draw(st.integers(0, 3))))
    return OutputSpec(
        rows,
        draw(
            st.sampled_from([None, SamplerSpec(), SamplerSpec(0.5, 3, seed=2**64 - 1)])
        ),
        draw(st.integers(0, 2)),
        logprobs=draw(st.booleans()),
        store=draw(st.none() | integers(len(rows))),
        processor=draw(st.integers(0, 2)),
    )


@st.composite
def forwards(draw: st.DrawFn) -> ForwardRequest:
    count, kind = draw(st.integers(0, 3)), draw(st.sampled_from([np.int32, np.int64]))
    token_ids = draw(integers(count, kind))
    if draw(st.integers(0, 9)) == 0:
        token_ids = token_ids.reshape(1, -1)
    length = draw(st.integers(count, 5))
    mask = np.arange(count * length).reshape(count, length) % 3 == 0
    return ForwardRequest(
        token_ids,
        draw(integers(draw(st.sampled_from([count, count, count + 1])))),
        draw(integers(draw(st.integers(0, 3)))),
        length,
        mask if draw(st.booleans()) else None,
        tuple(draw(st.lists(specs(), max_size=2))),
        draw(st.none() | integers(count)),
        draw(st.sampled_from(["", "adapter"])),
    )


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    projection = ProjectRequest(draw(integers(2)), draw(integers(2)), (draw(specs()),))
    return Batch(
        tuple(draw(st.lists(forwards(), max_size=4))),
        tuple(draw(st.lists(st.builds(PageCopy, *[st.integers(0, 9)] * 5)))),
        (projection,) * draw(st.integers(0, 1)),
    )


@given(st.lists(batches(), min_size=1, max_size=4), st.sampled_from([0, 1, 4096]))
def test_batches_of_a_connection_come_out_as_they_went_in(
    several: list[Batch], max_specs: int
) -> None:
    writer, reader = BatchWriter(), BatchReader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "MAX_SPECS", max_specs)
        for batch in [*several, *several]:
            found = reader.read(crossed(writer.write(batch)))
            assert same(found, batch)
            assert all(f.token_ids.flags.writeable for f in found.forwards)


NAMES = [field.name for field in fields(OutputResult)][:7]
SHAPES = [(0,), (0, 3), (1,), (2,), (1, 2), (3, 2), (1, 300)]


@st.composite
def arrays(draw: st.DrawFn, name: str) -> Any:
    """Draw an array, each with other numbers, and some that no engine should return."""
    dtype = np.int32 if name.endswith("ids") else np.float32
    shape = draw(st.sampled_from(SHAPES))
    first = draw(st.integers(0, 999))
    array = (np.arange(np.prod(shape)) + 1000 * first).reshape(shape).astype(dtype)
    unusual = draw(st.integers(0, 15)) if array.shape != (0,) else None
    if unusual == 0:
        return array.astype(np.float64)
    if unusual == 1:
        return np.asfortranarray(array)
    if unusual == 2:
        return np.repeat(array, 2, axis=-1)[..., ::2]  # with gaps
    if unusual == 3:
        return np.array(first, dtype)  # without a dimension
    return array


@st.composite
def outputs(draw: st.DrawFn) -> OutputResult:
    asked = draw(  # most often what engines return
        st.sampled_from([NAMES[:1]] * 4 + [NAMES[:3]] * 2 + [NAMES[1:3], NAMES])
    )
    values: dict[str, Any] = {
        name: np.empty(0, np.int32 if name.endswith("ids") else np.float32)
        for name in NAMES
    }
    values.update({name: draw(arrays(name)) for name in asked})
    return OutputResult(**values, has_ended=draw(st.booleans()))


@st.composite
def distributions(draw: st.DrawFn) -> OutputResult:
    """Draw one of few shapes, so that many outputs of a step are alike."""
    first, count = draw(st.integers(0, 999)), draw(st.integers(1, 2))
    nothing, numbers = np.empty(0, np.float32), np.arange(first, first + 3 * count)
    top = numbers.reshape(count, 3)
    return OutputResult(
        np.arange(first, first + count, dtype=np.int32),
        top.astype(np.int32),
        top.astype(np.float32),
        nothing,
        nothing,
        nothing,
        nothing,
    )


errors = st.builds(EngineError, st.text(max_size=3)) | st.just(ProcessorError("no"))
several = st.lists(outputs() | distributions(), max_size=3).map(tuple)
single = st.tuples(outputs())
alike = st.tuples(distributions())
steps = st.lists(several | single | errors, max_size=5) | st.lists(
    alike | errors, max_size=9
)


@given(steps, steps, st.sampled_from([(1 << 13, 1 << 10), (1 << 13, 4), (100, 4)]))
def test_results_come_out_as_they_went_in(
    first: list[Any], second: list[Any], most_bytes: tuple[int, int]
) -> None:
    result = BatchResult(tuple(first), tuple(second))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "MAX_JOINED_BYTES", most_bytes[0])
        patch.setattr(messages, "MAX_VIEWED_BYTES", most_bytes[1])
        found = unpack_result(crossed(pack_result(result)))
    assert same(found, result)
    for array in arrays_of(found):
        assert array.flags.writeable or not array.size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1,), (2,), (1, 2), (2, 0)])
@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32])
def test_whatever_comes_beside_a_token_crosses(
    name: str, shape: tuple[int, ...], kind: Any
) -> None:
    """Only where nothing does, the shortest way is taken."""
    tokens = {"token_ids": np.array([5], np.int32)}
    result = results_of(3, **(tokens | {name: np.ones(shape, kind)}))
    assert same(unpack_result(crossed(pack_result(result))), result)


def test_a_token_that_has_ended_a_generation_crosses_beside_others() -> None:
    one, other = outputs_of(2, token_ids=np.array([5], np.int32))
    result = BatchResult(((one,), (replace(other, has_ended=True),), (one,)))
    assert same(unpack_result(crossed(pack_result(result))), result)


def arrays_of(result: BatchResult) -> list[Any]:
    return [
        getattr(output, name)
        for request in (*result.forwards, *result.projections)
        if not isinstance(request, EngineError)
        for output in request
        for name in NAMES
    ]


def outputs_of(count: int, **values: Any) -> list[OutputResult]:
    """Return outputs of these arrays, whose numbers are unlike those of the others."""
    nothing = dict.fromkeys(NAMES, np.empty(0, np.float32))
    ids = dict.fromkeys(NAMES[:2], np.empty(0, np.int32))
    return [
        OutputResult(**(nothing | ids | {k: array + i for k, array in values.items()}))
        for i in range(count)
    ]


def results_of(count: int, **values: Any) -> BatchResult:
    """Return a step of requests with one output each."""
    return BatchResult(tuple((output,) for output in outputs_of(count, **values)))


def test_distributions_of_a_step_cross_as_one_array_of_each_kind() -> None:
    top = np.arange(32, dtype=np.int32).reshape(1, 32)
    probs = top.astype(np.float32)
    result = results_of(32, token_ids=top[0, :1], top_ids=top, top_probs=probs)
    packed = pickle.dumps(pack_result(result), 5)
    assert b"numpy" not in packed, "an array is pickled by itself"
    assert len(packed) < 32 * (1 + 32 + 32) * 4 + 500
    found = unpack_result(pickle.loads(packed))
    assert same(found, result)
    owners = {id(root(a)) for a in arrays_of(found) if a.size}
    assert len(owners) == 3


def test_who_keeps_the_logits_of_a_row_keeps_no_others() -> None:
    logits = np.zeros((1, 2048), np.float32)
    found = unpack_result(crossed(pack_result(results_of(4, logits=logits))))
    kept = [root(array) for array in arrays_of(found) if array.size]
    assert [array.nbytes for array in kept] == [logits.nbytes] * 4


def test_several_outputs_of_a_request_keep_their_order() -> None:
    tokens = np.array([5], np.int32)
    a, b = outputs_of(2, token_ids=tokens)
    c, d = outputs_of(2, token_ids=tokens, logprobs=np.ones(1))
    failed = EngineError("it failed")
    result = BatchResult(((a, c), failed, (d, b, a), ()), ((c, b), (d,), (a,)))
    assert same(unpack_result(crossed(pack_result(result))), result)


def test_large_arrays_of_a_result_are_sent_as_they_lie() -> None:
    packed = pack_result(results_of(3, logits=np.zeros((1, 32_000), np.float32)))
    sent: list[pickle.PickleBuffer] = []
    rest = pickle.dumps(packed, 5, buffer_callback=sent.append)
    assert [buffer.raw().nbytes for buffer in sent] == [128_000] * 3
    assert len(rest) < 2000


def root(array: Any) -> Any:
    """Return the array whose memory it is."""
    return array if not isinstance(array.base, np.ndarray) else root(array.base)


@pytest.mark.parametrize(
    "error",
    [
        GrammarError("row 1 is malformed", rows=(1,)),
        UnknownHandleError("processor", 7),
        ProcessorError("nothing is left"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_kind_its_words_and_its_attributes(error: PieError) -> None:
    assert same(unpack_error(crossed(pack_error(error))), error)


def test_a_bug_of_the_engine_becomes_an_engine_error() -> None:
    error = unpack_error(crossed(pack_error(KeyError("x"))))
    assert type(error) is EngineError
    assert "KeyError: 'x'" in str(error)
