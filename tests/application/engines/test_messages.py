"""Batches and results come out as they went in, whatever their shapes."""

from __future__ import annotations

import pickle
from dataclasses import fields, is_dataclass
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


@st.composite
def outputs(draw: st.DrawFn) -> OutputResult:
    arrays: list[Any] = []
    for index in range(7):
        dtype = np.int32 if index < 2 else np.float32
        shape = draw(st.sampled_from([(0,), (0, 3), (2,), (1, 2)]))
        arrays.append(np.full(shape, index, dtype))
    if draw(st.booleans()):  # tokens alone, as most have
        nothing = np.empty(0, np.float32)
        arrays[1:] = [np.empty(0, np.int32), *[nothing] * 5]
    values = dict(
        zip([field.name for field in fields(OutputResult)], arrays, strict=False)
    )
    return OutputResult(**values, has_ended=draw(st.booleans()))


errors = st.sampled_from([EngineError("it failed"), ProcessorError("nothing is left")])
results = st.lists(outputs(), max_size=2).map(tuple) | errors


@given(st.lists(results, max_size=5), st.lists(results, max_size=2))
def test_results_come_out_as_they_went_in(first: list[Any], second: list[Any]) -> None:
    result = BatchResult(tuple(first), tuple(second))
    assert same(unpack_result(crossed(pack_result(result))), result)


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
