"""Values across the Wasm boundary: Python objects to and from wasmtime's C structs.

wasmtime-py's own converters walk the component's types and touch every list element through
ctypes: 15 us for a call that answers at once, 5 ms for the 2,500 random bytes that CPython asks
for at its start. The codecs here are put together once, by hand, from the WIT; they work on raw
addresses, and lists of numbers cross in one go.

A codec reads (``lift``) or writes (``lower``) one ``wasmtime_component_val`` at an address. What
it writes is allocated by wasmtime, which frees it once it has copied it into the guest.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from wasmtime import _ffi as ffi

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

__all__ = [
    "BOOL",
    "F32",
    "F64",
    "STRING",
    "U8",
    "U32",
    "U64",
    "VAL_SIZE",
    "Array",
    "Codec",
    "Enum",
    "Flags",
    "List",
    "Option",
    "Record",
    "Result",
    "ResultValue",
    "Scalar",
    "String",
    "Tuple",
    "Unit",
    "Variant",
]

T = TypeVar("T")
Value = ffi.wasmtime_component_val_t

VAL_SIZE = ctypes.sizeof(Value)
PAYLOAD = Value.of.offset
POINTER_SIZE = ctypes.sizeof(ctypes.c_void_p)
NAME_SIZE = ctypes.sizeof(ffi.wasm_name_t)
ENTRY_SIZE = ctypes.sizeof(ffi.wasmtime_component_valrecord_entry)
ENTRY_VALUE = ffi.wasmtime_component_valrecord_entry.val.offset
SHORT_LIST = 16


def _native(name: str, *parameters: Any, result: Any = None) -> Any:
    """Return a C function that takes plain addresses, which are cheaper than typed pointers."""
    library: Any = ffi.dll
    function = library[name]  # indexing makes an object of its own, unlike an attribute
    function.argtypes, function.restype = parameters, result
    return function


_ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_new_name = _native("wasm_byte_vec_new", _ADDRESS, _SIZE, ctypes.c_char_p)
_new_list = _native("wasmtime_component_vallist_new_uninit", _ADDRESS, _SIZE)
_new_record = _native("wasmtime_component_valrecord_new_uninit", _ADDRESS, _SIZE)
_new_tuple = _native("wasmtime_component_valtuple_new_uninit", _ADDRESS, _SIZE)
_new_flags = _native("wasmtime_component_valflags_new_uninit", _ADDRESS, _SIZE)
_new_box = _native("wasmtime_component_val_new", _ADDRESS, result=_ADDRESS)

_size_at = ctypes.c_size_t.from_address
_pointer_at = ctypes.c_void_p.from_address
_byte_at = ctypes.c_uint8.from_address


class Codec(Protocol[T]):
    """How a WIT type looks in Python."""

    def lift(self, address: int) -> T:
        """Read the value at ``address``."""
        ...

    def lower(self, address: int, value: T) -> None:
        """Write ``value`` to the uninitialised memory at ``address``."""
        ...


class Scalar(Generic[T]):
    """A number or a bool."""

    def __init__(self, kind: Any, c_type: Any, code: str) -> None:
        self.kind: int = kind.value
        self.c_type = c_type
        self.code = code
        self.dtype = np.dtype(
            "?" if code == "?" else f"<{code.lower()}" if code in "fd" else code
        )

    def lift(self, address: int) -> T:
        value: T = self.c_type.from_address(address + PAYLOAD).value
        return value

    def lower(self, address: int, value: T) -> None:
        _byte_at(address).value = self.kind
        self.c_type.from_address(address + PAYLOAD).value = value

    def packer(self, count: int) -> struct.Struct:
        """Return what packs the payloads of ``count`` list elements, padding in between."""
        return _packer(self.code, count)


@cache
def _packer(code: str, count: int) -> struct.Struct:
    size = struct.calcsize("=" + code)
    before, after = PAYLOAD, VAL_SIZE - PAYLOAD - size
    return struct.Struct("=" + f"{before}x{code}{after}x" * count)


BOOL = Scalar[bool](ffi.WASMTIME_COMPONENT_BOOL, ctypes.c_bool, "?")
U8 = Scalar[int](ffi.WASMTIME_COMPONENT_U8, ctypes.c_uint8, "B")
U32 = Scalar[int](ffi.WASMTIME_COMPONENT_U32, ctypes.c_uint32, "I")
U64 = Scalar[int](ffi.WASMTIME_COMPONENT_U64, ctypes.c_uint64, "Q")
F32 = Scalar[float](ffi.WASMTIME_COMPONENT_F32, ctypes.c_float, "f")
F64 = Scalar[float](ffi.WASMTIME_COMPONENT_F64, ctypes.c_double, "d")


def _new_vector(address: int, count: int) -> int:
    """Let wasmtime allocate ``count`` values for the list at ``address``; return where."""
    if not count:  # as wasmtime itself leaves an empty one
        _size_at(address + PAYLOAD).value = 0
        _pointer_at(address + PAYLOAD + POINTER_SIZE).value = None
        return 0
    _new_list(address + PAYLOAD, count)
    return _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0


class Array:
    """A list of numbers as a numpy array: for many of them, and for what the engine reads."""

    def __init__(self, item: Scalar[Any], dtype: Any = None) -> None:
        self.item = item
        self.dtype = np.dtype(dtype) if dtype is not None else item.dtype

    def lift(self, address: int) -> NDArray[Any]:
        count = _size_at(address + PAYLOAD).value
        if count == 0:
            return np.empty(0, self.dtype)
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        copied = ctypes.string_at(data, count * VAL_SIZE)
        if count <= SHORT_LIST:
            return np.array(self.item.packer(count).unpack(copied)).astype(self.dtype)
        view = np.ndarray((count,), self.item.dtype, copied, PAYLOAD, (VAL_SIZE,))
        return view.astype(self.dtype)

    def lower(self, address: int, value: Any) -> None:
        if isinstance(value, bytes):
            value = np.frombuffer(value, np.uint8)
        count = len(value)
        data = _new_vector(address, count)
        if count:
            buffer: Any = (ctypes.c_char * (count * VAL_SIZE)).from_address(data)
            np.ndarray((count,), np.uint8, buffer, 0, (VAL_SIZE,))[:] = self.item.kind
            np.ndarray((count,), self.item.dtype, buffer, PAYLOAD, (VAL_SIZE,))[:] = (
                value
            )
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_LIST.value


class List(Generic[T]):
    """A list of anything; short lists of numbers are packed without numpy."""

    def __init__(self, item: Codec[T]) -> None:
        self.item = item
        self.array = Array(item) if isinstance(item, Scalar) else None

    def lift(self, address: int) -> list[T]:
        count = _size_at(address + PAYLOAD).value
        if count == 0:
            return []
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        if self.array is None:
            return [self.item.lift(data + i * VAL_SIZE) for i in range(count)]
        if count <= SHORT_LIST:
            copied = ctypes.string_at(data, count * VAL_SIZE)
            return list(self.array.item.packer(count).unpack(copied))
        return list(self.array.lift(address).tolist())

    def lower(self, address: int, value: Sequence[T]) -> None:
        count = len(value)
        if self.array is not None and count > SHORT_LIST:
            self.array.lower(address, np.asarray(value, self.array.dtype))
            return
        data = _new_vector(address, count)
        for i in range(count):
            self.item.lower(data + i * VAL_SIZE, value[i])
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_LIST.value


def _read_name(address: int) -> str:
    data = _pointer_at(address + POINTER_SIZE).value or 0
    return ctypes.string_at(data, _size_at(address).value).decode()


def _write_name(address: int, raw: bytes) -> None:
    _new_name(address, len(raw), raw)


class String:
    """Text, always valid UTF-8."""

    def lift(self, address: int) -> str:
        return _read_name(address + PAYLOAD)

    def lower(self, address: int, value: str) -> None:
        # A lone surrogate has no UTF-8; the guest must still get the rest of the text.
        _write_name(address + PAYLOAD, value.encode(errors="replace"))
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_STRING.value


STRING = String()


class Enum:
    """One of several names, as a ``str``."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.raw_names = {name: name.encode() for name in names}

    def lift(self, address: int) -> str:
        return _read_name(address + PAYLOAD)

    def lower(self, address: int, value: str) -> None:
        _write_name(address + PAYLOAD, self.raw_names[value])
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_ENUM.value


class Flags:
    """Any of several names, as a set of them."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.raw_names = {name: name.encode() for name in names}

    def lift(self, address: int) -> frozenset[str]:
        count = _size_at(address + PAYLOAD).value
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        return frozenset(_read_name(data + i * NAME_SIZE) for i in range(count))

    def lower(self, address: int, value: Collection[str]) -> None:
        raw_names = [self.raw_names[name] for name in value]
        _new_flags(address + PAYLOAD, len(raw_names))
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        for i, raw_name in enumerate(raw_names):
            _write_name(data + i * NAME_SIZE, raw_name)
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_FLAGS.value


class Record:
    """A record as a tuple of its fields, in the order of the WIT."""

    def __init__(self, **fields: Codec[Any]) -> None:
        self.codec_by_name = {
            name.replace("_", "-"): codec for name, codec in fields.items()
        }
        self.fields = [
            (name.encode(), codec, i * ENTRY_SIZE)
            for i, (name, codec) in enumerate(self.codec_by_name.items())
        ]

    def lift(self, address: int) -> tuple[Any, ...]:
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        data += ENTRY_VALUE
        return tuple(codec.lift(data + offset) for _, codec, offset in self.fields)

    def lower(self, address: int, value: Sequence[Any]) -> None:
        _new_record(address + PAYLOAD, len(self.fields))
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        for (name, codec, offset), item in zip(self.fields, value, strict=True):
            _write_name(data + offset, name)
            codec.lower(data + offset + ENTRY_VALUE, item)
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_RECORD.value


class Tuple:
    """A WIT tuple."""

    def __init__(self, *items: Codec[Any]) -> None:
        self.items = items

    def lift(self, address: int) -> tuple[Any, ...]:
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        return tuple(
            item.lift(data + i * VAL_SIZE) for i, item in enumerate(self.items)
        )

    def lower(self, address: int, value: Sequence[Any]) -> None:
        _new_tuple(address + PAYLOAD, len(self.items))
        data = _pointer_at(address + PAYLOAD + POINTER_SIZE).value or 0
        for i, (codec, item) in enumerate(zip(self.items, value, strict=True)):
            codec.lower(data + i * VAL_SIZE, item)
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_TUPLE.value


def _write_boxed(address: int, codec: Codec[Any], value: Any) -> None:
    """Write a value of its own and a pointer to it at ``address``."""
    staged = Value()
    codec.lower(ctypes.addressof(staged), value)
    _pointer_at(address).value = _new_box(
        ctypes.addressof(staged)
    )  # takes what it holds


class Option(Generic[T]):
    """A value or None."""

    def __init__(self, item: Codec[T]) -> None:
        self.item = item

    def lift(self, address: int) -> T | None:
        boxed = _pointer_at(address + PAYLOAD).value
        return None if boxed is None else self.item.lift(boxed)

    def lower(self, address: int, value: T | None) -> None:
        if value is None:
            _pointer_at(address + PAYLOAD).value = None
        else:
            _write_boxed(address + PAYLOAD, self.item, value)
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_OPTION.value


class Unit:
    """The absent payload of a ``result<_, error>``."""


class ResultValue(Generic[T]):
    """A WIT result: ``is_ok`` says whether ``value`` is the good one."""

    __slots__ = ("is_ok", "value")

    def __init__(self, is_ok: bool, value: Any) -> None:
        self.is_ok, self.value = is_ok, value


class Result:
    """A WIT result as a :class:`ResultValue`."""

    def __init__(self, ok: Codec[Any] | Unit, error: Codec[Any] | Unit) -> None:
        self.ok, self.error = ok, error

    def lift(self, address: int) -> ResultValue[Any]:
        is_ok = bool(_byte_at(address + PAYLOAD).value)
        codec = self.ok if is_ok else self.error
        boxed = _pointer_at(address + PAYLOAD + POINTER_SIZE).value
        if isinstance(codec, Unit) or boxed is None:
            return ResultValue(is_ok, None)
        return ResultValue(is_ok, codec.lift(boxed))

    def lower(self, address: int, value: ResultValue[Any]) -> None:
        codec = self.ok if value.is_ok else self.error
        _byte_at(address + PAYLOAD).value = value.is_ok
        if isinstance(codec, Unit):
            _pointer_at(address + PAYLOAD + POINTER_SIZE).value = None
        else:
            _write_boxed(address + PAYLOAD + POINTER_SIZE, codec, value.value)
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_RESULT.value


class Variant:
    """A WIT variant as a pair of its case and its payload (None where the case has none)."""

    def __init__(self, **cases: Codec[Any] | None) -> None:
        self.cases = {name.replace("_", "-"): codec for name, codec in cases.items()}

    def lift(self, address: int) -> tuple[str, Any]:
        case = _read_name(address + PAYLOAD)
        codec = self.cases[case]
        boxed = _pointer_at(address + PAYLOAD + NAME_SIZE).value
        return case, None if codec is None or boxed is None else codec.lift(boxed)

    def lower(self, address: int, value: tuple[str, Any]) -> None:
        case, payload = value
        codec = self.cases[case]
        _write_name(address + PAYLOAD, case.encode())
        if codec is None:
            _pointer_at(address + PAYLOAD + NAME_SIZE).value = None
        else:
            _write_boxed(address + PAYLOAD + NAME_SIZE, codec, payload)
        _byte_at(address).value = ffi.WASMTIME_COMPONENT_VARIANT.value
