"""Batches and results as bytes: what crosses between the server and an engine's process.

A step has many small arrays, and to pickle each takes longer than a socket takes for all. So those
of the same kind are joined, and specs of outputs, which hardly change from step to step, cross once
and are then meant by a number. What has another shape than usual is pickled as it is, so that
the engine refuses a wrong message with the same words as in a thread.
"""

from __future__ import annotations

import builtins
import pickle
from itertools import accumulate, pairwise, repeat
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any

import numpy as np

import pie_trio.errors
from pie_trio.engine_api import (
    Batch,
    BatchResult,
    ForwardRequest,
    OutputResult,
    OutputSpec,
    PageCopy,
)
from pie_trio.errors import EngineError, PieError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import RequestResult

__all__ = [
    "BatchReader",
    "BatchWriter",
    "pack_error",
    "pack_result",
    "unpack_error",
    "unpack_result",
]

MAX_SPECS = 4096
"""So many specs are remembered on both sides; then all are forgotten."""

MAX_JOINED_BYTES = 1 << 13
"""Larger arrays of a result are not joined: to copy them costs more than to pickle each."""

MAX_VIEWED_BYTES = 1 << 10
"""Larger ones are copied out of the joined array: who keeps a row is not to keep all of them."""

_LAYOUT = 6  # numbers that tell where in the joined array a forward is
_INT32, _FLOAT32 = np.dtype(np.int32), np.dtype(np.float32)
_NO_INTEGERS: NDArray[np.int32] = np.empty(0, np.int32)
_NO_FLOATS: NDArray[np.float32] = np.empty(0, np.float32)
_NOTHING = (0,)  # the shape of what was not asked for
_COLUMNS = (
    *((attrgetter(name), _INT32) for name in ("token_ids", "top_ids")),
    *(
        (attrgetter(name), _FLOAT32)
        for name in ("top_probs", "logprobs", "entropy", "logits", "hidden")
    ),
)
"""How the arrays of an output are read, in their order, and of what type they are."""

_copy = methodcaller("copy")

_Groups = dict[tuple[Any, ...], tuple[int, list[OutputResult]]]
"""Outputs by their shapes, and a number for each group, in its order."""


class BatchWriter:
    """Turns batches into plain values. One for each connection: it knows what was said before."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._known: dict[int, tuple[tuple[OutputSpec, ...], int]] = {}
        self._new: list[Any] = []

    def write(self, batch: Batch) -> Any:
        """Return what :meth:`BatchReader.read` makes the batch of."""
        is_forgotten = len(self._known) > MAX_SPECS or len(self._numbers) > MAX_SPECS
        if is_forgotten:
            self._numbers.clear()
            self._known.clear()
        self._new = []
        try:
            body = self._write_joined(batch)
        except (TypeError, ValueError):  # an array of another type or shape
            body = pickle.dumps(batch, 5)
        return body, is_forgotten, self._new

    def _write_joined(self, batch: Batch) -> Any:
        arrays: list[NDArray[np.int32]] = [_NO_INTEGERS]
        layout: list[int] = []
        unusual: dict[int, tuple[Any, ...]] = {}
        for forward in batch.forwards:
            token_ids, positions = forward.token_ids, forward.positions
            page_ids: NDArray[Any] = forward.page_ids
            arrays += (token_ids, positions, page_ids)
            layout += (
                len(token_ids),
                len(positions),
                len(page_ids),
                forward.kv_len,
                forward.follows,
                self._number(forward.outputs),
            )
            mask, input_slots = forward.mask, forward.input_slots
            if mask is not None or input_slots is not None or forward.adapter:
                index = len(layout) // _LAYOUT - 1
                unusual[index] = (mask, input_slots, forward.adapter)
        copies = [
            (c.source, c.target, c.source_offset, c.target_offset, c.count)
            for c in batch.copies
        ]
        # The first one has one dimension, so that others must have one too.
        joined = np.concatenate(arrays, dtype=np.int32, casting="no")
        return layout, joined.tobytes(), unusual, copies, batch.projections

    def _number(self, outputs: tuple[OutputSpec, ...]) -> int:
        known = self._known.get(id(outputs))  # as long as it is kept, its id is its own
        if known is not None:
            return known[1]
        key = tuple(map(_spec_values, outputs))
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self._numbers)
            self._new.append(outputs)
        self._known[id(outputs)] = (outputs, number)
        return number


class BatchReader:
    """Makes batches of what a :class:`BatchWriter` has written."""

    def __init__(self) -> None:
        self._specs: list[tuple[OutputSpec, ...]] = []

    def read(self, message: Any) -> Batch:
        """Return the batch; its arrays can be written to."""
        body, is_forgotten, new = message
        if is_forgotten:
            self._specs.clear()
        self._specs += new
        if isinstance(body, bytes):
            batch: Batch = pickle.loads(body)
            return batch
        layout: list[int]
        unusual: dict[int, tuple[Any, ...]]
        layout, joined, unusual, copies, projections = body
        numbers = np.frombuffer(bytearray(joined), np.int32)
        start = 0
        forwards: list[ForwardRequest] = []
        for index in range(0, len(layout), _LAYOUT):
            num_tokens, num_positions, num_pages, kv_len, follows, spec = layout[
                index : index + _LAYOUT
            ]
            middle = start + num_tokens
            last = middle + num_positions
            end = last + num_pages
            forwards.append(
                ForwardRequest(
                    numbers[start:middle],
                    numbers[middle:last],
                    numbers[last:end],
                    kv_len,
                    None,
                    self._specs[spec],
                    follows=follows,
                )
            )
            start = end
        for index, (mask, input_slots, adapter) in unusual.items():
            forward = forwards[index]
            forward.mask, forward.input_slots = mask, input_slots
            forward.adapter = adapter
        return Batch(
            tuple(forwards), tuple(PageCopy(*values) for values in copies), projections
        )


def pack_result(result: BatchResult) -> Any:
    """Return plain values of which :func:`unpack_result` makes the result."""
    tokens: list[NDArray[np.int32]] = []
    groups: _Groups = {}
    forwards = [_pack_request(found, tokens, groups) for found in result.forwards]
    projections = [_pack_request(found, tokens, groups) for found in result.projections]
    joined = np.concatenate(tokens) if tokens else _NO_INTEGERS
    lengths = [len(found) for found in tokens]
    packed = [_pack_group(key, outputs) for key, (_, outputs) in groups.items()]
    return forwards, projections, joined.tobytes(), lengths, packed


def unpack_result(message: Any) -> BatchResult:
    """Return the result; its arrays can be written to."""
    forwards, projections, joined, lengths, packed = message
    numbers = np.frombuffer(bytearray(joined), np.int32)
    if len(lengths) == lengths.count(1):  # one token each, as most have
        tokens = iter(numbers.reshape(-1, 1))
    else:
        bounds = pairwise(accumulate(lengths, initial=0))
        tokens = iter([numbers[start:end] for start, end in bounds])
    groups = [_unpack_group(*group) for group in packed]
    return BatchResult(
        tuple([_unpack_request(found, tokens, groups) for found in forwards]),
        tuple([_unpack_request(found, tokens, groups) for found in projections]),
    )


def pack_error(error: BaseException) -> tuple[str, str, dict[str, Any]]:
    """Return an error as its kind, its message and its attributes.

    What is none of Pie's own is a bug of the engine's, and becomes an EngineError.
    """
    name = type(error).__name__
    if isinstance(error, PieError) and hasattr(pie_trio.errors, name):
        return name, str(error), dict(error.__dict__)
    return "EngineError", f"the engine failed: {name}: {error}", {}


def unpack_error(packed: tuple[str, str, dict[str, Any]]) -> PieError:
    """Return the error that :func:`pack_error` was given."""
    name, message, attributes = packed
    kind: type[PieError] = getattr(pie_trio.errors, name)
    error = kind.__new__(kind)  # some take other arguments than their message
    builtins.Exception.__init__(error, message)
    error.__dict__.update(attributes)
    return error


def _spec_values(spec: OutputSpec) -> tuple[Any, ...]:
    rows, store = spec.rows, spec.store
    return (
        rows.tobytes(),
        rows.dtype.char,
        rows.shape,
        spec.sampler,
        spec.top_k,
        spec.logprobs,
        spec.entropy,
        spec.logits,
        spec.hidden,
        None if store is None else (store.tobytes(), store.dtype.char, store.shape),
        spec.processor,
        spec.accept_sampled,
    )


def _pack_request(
    found: RequestResult | EngineError,
    tokens: list[NDArray[np.int32]],
    groups: _Groups,
) -> Any:
    """Return None where there is one output with tokens only, the most frequent one.

    Others are put into groups of equal shapes. Of one output the group's number is returned, of
    several a list of them: what is meant is the next one of the group.
    """
    if isinstance(found, EngineError):
        return pack_error(found)
    if len(found) != 1:
        return [_add(output, groups) for output in found]
    if _has_tokens_only(found[0]):
        tokens.append(found[0].token_ids)
        return None
    return _add(found[0], groups)


def _unpack_request(
    packed: Any,
    tokens: Iterator[NDArray[np.int32]],
    groups: Sequence[Iterator[OutputResult]],
) -> RequestResult | EngineError:
    if packed is None:
        nothing = _NO_FLOATS
        return (
            OutputResult(
                next(tokens),
                _NO_INTEGERS,
                nothing,
                nothing,
                nothing,
                nothing,
                nothing,
            ),
        )
    if isinstance(packed, int):
        return (next(groups[packed]),)
    if isinstance(packed, tuple):
        error = unpack_error(packed)  # pyright: ignore[reportUnknownArgumentType]
        assert isinstance(error, EngineError), "no other takes the place of a result"
        return error
    numbers: list[int] = packed
    return tuple([next(groups[number]) for number in numbers])


def _has_tokens_only(output: OutputResult) -> bool:
    shapes_are_nothing = (
        output.top_ids.shape
        == output.top_probs.shape
        == output.logprobs.shape
        == output.entropy.shape
        == output.logits.shape
        == output.hidden.shape
        == _NOTHING
    )
    return (
        shapes_are_nothing
        and not output.has_ended
        and output.token_ids.ndim == 1
        and output.token_ids.dtype == _INT32
    )


def _add(output: OutputResult, groups: _Groups) -> int:
    """Put an output to those of its shapes, and return their number."""
    key = (
        output.token_ids.shape,
        output.top_ids.shape,
        output.top_probs.shape,
        output.logprobs.shape,
        output.entropy.shape,
        output.logits.shape,
        output.hidden.shape,
        output.has_ended,
    )
    group = groups.get(key)
    if group is None:
        group = groups[key] = (len(groups), [])
    group[1].append(output)
    return group[0]


def _pack_group(key: tuple[Any, ...], outputs: Sequence[OutputResult]) -> Any:
    """Return how many there are, their shapes, whether they have ended, and all arrays by kind."""
    *shapes, has_ended = key
    columns = [
        None
        if shape == _NOTHING
        else _join([read(output) for output in outputs], dtype)
        for shape, (read, dtype) in zip(shapes, _COLUMNS, strict=True)
    ]
    return len(outputs), shapes, has_ended, columns


def _join(arrays: list[NDArray[Any]], dtype: np.dtype[Any]) -> Any:
    """Return the bytes of arrays of one shape; those that cannot be joined as they are."""
    if arrays[0].nbytes > MAX_JOINED_BYTES:
        return arrays
    try:
        return np.concatenate(arrays, dtype=dtype, casting="no").tobytes()
    except (TypeError, ValueError):  # of another type, or without a dimension
        return arrays


def _unpack_group(
    count: int, shapes: Sequence[Any], has_ended: bool, columns: Sequence[Any]
) -> Iterator[OutputResult]:
    """Return the outputs of a group; their arrays are views of one for each kind, if small."""
    arrays: list[Iterable[Any]] = []
    for shape, packed, (_, dtype) in zip(shapes, columns, _COLUMNS, strict=True):
        if packed is None:
            nothing: NDArray[Any] = _NO_INTEGERS if dtype == _INT32 else _NO_FLOATS
            arrays.append(repeat(nothing))
        elif isinstance(packed, list):
            arrays.append(packed)  # pyright: ignore[reportUnknownArgumentType]
        else:
            rows = np.frombuffer(bytearray(packed), dtype).reshape(count, *shape)
            is_large = count > 1 and len(packed) > count * MAX_VIEWED_BYTES
            arrays.append(map(_copy, rows) if is_large else rows)
    return map(OutputResult, *arrays, repeat(has_ended, count))
