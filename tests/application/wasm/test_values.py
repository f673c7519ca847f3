"""Codecs read back what they write."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wasmtime import _ffi as ffi

from pie_trio.application.wasm.values import (
    BOOL,
    F32,
    F64,
    STRING,
    U8,
    U32,
    U64,
    VAL_SIZE,
    Array,
    Codec,
    Enum,
    Flags,
    List,
    Option,
    Record,
    Result,
    ResultValue,
    Tuple,
    Unit,
    Variant,
)


def there_and_back(codec: Codec[Any], value: Any) -> Any:
    slot = (ctypes.c_char * VAL_SIZE)()
    address = ctypes.addressof(slot)
    codec.lower(address, value)
    try:
        return codec.lift(address)
    finally:
        pointer = ctypes.cast(slot, ctypes.POINTER(ffi.wasmtime_component_val_t))
        ffi.wasmtime_component_val_delete(pointer)


@given(st.integers(0, 2**64 - 1), st.booleans(), st.floats(allow_nan=False))
def test_scalars_survive(number: int, flag: bool, real: float) -> None:
    assert there_and_back(U64, number) == number
    assert there_and_back(U32, number % 2**32) == number % 2**32
    assert there_and_back(U8, number % 256) == number % 256
    assert there_and_back(BOOL, flag) is flag
    assert there_and_back(F64, real) == real


@given(st.floats(width=32, allow_nan=False))
def test_single_precision_survives(real: float) -> None:
    assert there_and_back(F32, real) == real


@given(st.text(), st.lists(st.text(), max_size=5))
def test_text_survives_as_utf8(text: str, texts: list[str]) -> None:
    expected = text.encode(errors="replace").decode()
    assert there_and_back(STRING, text) == expected
    assert there_and_back(List(STRING), texts) == [
        t.encode(errors="replace").decode() for t in texts
    ]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_lists_of_numbers_survive_short_and_long(numbers: list[int]) -> None:
    assert there_and_back(List(U32), numbers) == numbers
    array = there_and_back(Array(U32), np.array(numbers, np.uint32))
    assert array.dtype == np.uint32
    assert array.tolist() == numbers


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
def test_lists_of_floats_survive(numbers: list[float]) -> None:
    assert there_and_back(List(F32), numbers) == numbers
    assert there_and_back(Array(F32), numbers).tolist() == numbers


@given(st.binary(max_size=3000))
def test_bytes_survive(data: bytes) -> None:
    array = there_and_back(Array(U8), np.frombuffer(data, np.uint8))
    assert array.tobytes() == data


def test_an_array_can_have_another_dtype_than_the_wire() -> None:
    array = there_and_back(Array(U32, np.int32), [1, 2, 3])
    assert array.dtype == np.int32
    assert array.tolist() == [1, 2, 3]


def test_composites_survive() -> None:
    record = Record(some_name=U32, flags=List(BOOL))
    assert there_and_back(record, (7, [True, False])) == (7, [True, False])
    assert there_and_back(Tuple(U32, STRING), (1, "x")) == (1, "x")
    assert there_and_back(Option(record), None) is None
    assert there_and_back(Option(record), (7, [])) == (7, [])
    assert there_and_back(Enum("red", "green"), "green") == "green"
    variant = Variant(some_case=U32, other=None)
    assert there_and_back(variant, ("some-case", 3)) == ("some-case", 3)
    assert there_and_back(variant, ("other", None)) == ("other", None)


@given(st.frozensets(st.sampled_from(["read", "write-all", "grow"])))
def test_flags_survive(flags: frozenset[str]) -> None:
    codec = Flags("read", "write-all", "grow")
    assert there_and_back(codec, flags) == flags
    assert there_and_back(Option(codec), flags) == flags


@given(
    st.one_of(
        st.tuples(st.just("text"), st.text(st.characters(codec="utf-8"))),
        st.tuples(st.just("both"), st.tuples(st.integers(0, 9), st.booleans())),
        st.just(("nothing-at-all", None)),
    )
)
def test_variants_survive_in_any_place(value: tuple[str, Any]) -> None:
    codec = Variant(text=STRING, both=Tuple(U32, BOOL), nothing_at_all=None)
    assert there_and_back(codec, value) == value
    assert there_and_back(List(codec), [value, value]) == [value, value]
    assert there_and_back(Record(choice=codec), (value,)) == (value,)
    assert (
        there_and_back(Result(codec, Unit()), ResultValue(True, value)).value == value
    )


def test_a_name_that_is_not_declared_is_refused() -> None:
    cases: list[tuple[Codec[Any], Any]] = [
        (Flags("a"), {"b"}),
        (Variant(a=None), ("b", None)),
    ]
    for codec, value in cases:
        with pytest.raises(KeyError):
            there_and_back(codec, value)


@pytest.mark.parametrize("is_ok", [True, False])
def test_results_survive_with_and_without_a_payload(is_ok: bool) -> None:
    codec = Result(U32, Enum("bad"))
    back = there_and_back(codec, ResultValue(is_ok, 5 if is_ok else "bad"))
    assert (back.is_ok, back.value) == (is_ok, 5 if is_ok else "bad")
    back = there_and_back(Result(Unit(), Unit()), ResultValue(is_ok, None))
    assert (back.is_ok, back.value) == (is_ok, None)
