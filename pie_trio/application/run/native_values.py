"""Values between the SDK and the host in one process, by the codecs of the Wasm boundary.

The SDK's side of them looks like what componentize-py makes of the WIT: records, variants, enums
and flags are classes with its names, lists of bytes are ``bytes``. The host's side is what the
codecs lift and lower.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import keyword
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio.application.wasm.values import (
    U8,
    Array,
    Codec,
    Enum,
    Flags,
    List,
    Option,
    Record,
    Scalar,
    String,
    Tuple,
    Variant,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["NativeTypes", "python_name"]


def python_name(wit_name: str) -> str:
    """Return what componentize-py calls a function or a field."""
    return _escape(wit_name.replace("-", "_"))


def _class_name(wit_name: str) -> str:
    return _escape("".join(part.capitalize() for part in wit_name.split("-")))


def _escape(name: str) -> str:
    return f"{name}_" if keyword.iskeyword(name) else name


class NativeTypes:
    """The classes of the SDK's side, made for one interface; a codec has one class.

    Args:
        types: The named types of the interface.
        shared: Of another interface, whose classes are used where both have the same codec.
    """

    def __init__(
        self, types: Mapping[str, Codec[Any]], shared: NativeTypes | None = None
    ) -> None:
        self._types = types
        self._names: dict[int, str] = {} if shared is None else shared._names
        self._classes: dict[int, Any] = {} if shared is None else shared._classes
        self._names |= {id(codec): name for name, codec in types.items()}

    def classes(self) -> dict[str, Any]:
        """Return all classes by the names that the SDK knows."""
        found: dict[str, Any] = {}
        for name, codec in self._types.items():
            if isinstance(codec, Variant):
                cases = self._class_of(codec)
                found |= {case.__name__: case for case in cases.values()}
            elif isinstance(codec, Record | Enum | Flags):
                found[_class_name(name)] = self._class_of(codec)
        return found

    def from_sdk(self, codec: Codec[Any]) -> Callable[[Any], Any]:
        """Return what turns the SDK's value into the one that a codec lifts."""
        match codec:
            case Scalar(c_type=ctypes.c_float):
                return _round
            case Scalar() | String():
                return _same
            case Array(dtype=dtype):
                if codec.item is U8:
                    return lambda value: np.frombuffer(bytes(value), np.uint8)
                return lambda value: np.array(value, dtype)
            case List():
                return _every(self.from_sdk(_item(codec)))
            case Option():
                return _optional(self.from_sdk(_item(codec)))
            case Tuple(items=items):
                return _each([self.from_sdk(item) for item in items])
            case Record():
                fields = [
                    (python_name(name), self.from_sdk(field))
                    for name, field in codec.codec_by_name.items()
                ]
                return lambda value: tuple(
                    convert(getattr(value, name)) for name, convert in fields
                )
            case Enum():
                return _name_of(codec.names)
            case Flags(names=names):
                return lambda value: frozenset(
                    name for i, name in enumerate(names) if value.value & 1 << i
                )
            case Variant(cases=cases):
                converts = {
                    self._class_of(codec)[case]: (
                        case,
                        None if payload is None else self.from_sdk(payload),
                    )
                    for case, payload in cases.items()
                }
                return lambda value: _split(*converts[type(value)], value)
            case _:
                raise TypeError(f"{codec} has no form in the SDK yet")

    def to_sdk(self, codec: Codec[Any]) -> Callable[[Any], Any]:
        """Return what turns the value that a codec lowers into the SDK's."""
        match codec:
            case Scalar(c_type=ctypes.c_float):
                return _round
            case Scalar() | String():
                return _same
            case Array() | List() if _item(codec) is U8:
                return bytes
            case Array(dtype=dtype):
                return lambda value: list(np.asarray(value, dtype).tolist())
            case List():
                return _every(self.to_sdk(_item(codec)))
            case Option():
                return _optional(self.to_sdk(_item(codec)))
            case Tuple(items=items):
                return _each([self.to_sdk(item) for item in items])
            case Record():
                make = self._class_of(codec)
                fields = _each([self.to_sdk(f) for f in codec.codec_by_name.values()])
                return lambda value: make(*fields(value))
            case Enum(names=names):
                members = dict(zip(names, self._class_of(codec), strict=True))
                return lambda value: members[value]
            case Flags(names=names):
                make = self._class_of(codec)
                return lambda value: make(
                    sum(1 << i for i, name in enumerate(names) if name in value)
                )
            case Variant(cases=cases):
                converts = {
                    case: (
                        self._class_of(codec)[case],
                        None if payload is None else self.to_sdk(payload),
                    )
                    for case, payload in cases.items()
                }
                return lambda value: _join(*converts[value[0]], value[1])
            case _:
                raise TypeError(f"{codec} has no form in the SDK yet")

    def _class_of(self, codec: Codec[Any]) -> Any:
        """Return the class for a codec, or for a variant the classes of its cases."""
        if id(codec) not in self._classes:
            name = _class_name(self._names.get(id(codec), "unnamed"))
            self._classes[id(codec)] = _make_class(name, codec)
        return self._classes[id(codec)]


def _make_class(name: str, codec: Codec[Any]) -> Any:
    match codec:
        case Record():
            fields = [python_name(field) for field in codec.codec_by_name]
            return dataclasses.make_dataclass(name, fields)
        case Enum(names=names):
            return enum.Enum(name, {_shout(n): i for i, n in enumerate(names)})
        case Flags(names=names):
            return enum.Flag(name, {_shout(n): 1 << i for i, n in enumerate(names)})
        case Variant(cases=cases):
            return {
                case: dataclasses.make_dataclass(
                    f"{name}_{_class_name(case)}", [] if payload is None else ["value"]
                )
                for case, payload in cases.items()
            }
        case _:
            raise AssertionError("others have no class")


def _shout(wit_name: str) -> str:
    return wit_name.replace("-", "_").upper()


def _same(value: Any) -> Any:
    return value


def _round(value: float) -> float:
    return ctypes.c_float(value).value


def _name_of(names: tuple[str, ...]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        index: int = value.value
        return names[index]

    return convert


def _item(codec: Any) -> Codec[Any]:
    item: Codec[Any] = codec.item
    return item


def _every(convert: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda value: [convert(item) for item in value]


def _optional(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else convert(value)


def _each(converts: list[Callable[[Any], Any]]) -> Callable[[Any], tuple[Any, ...]]:
    return lambda value: tuple(
        convert(item) for convert, item in zip(converts, value, strict=True)
    )


def _split(
    case: str, convert: Callable[[Any], Any] | None, value: Any
) -> tuple[str, Any]:
    return case, None if convert is None else convert(value.value)


def _join(make: Any, convert: Callable[[Any], Any] | None, payload: Any) -> Any:
    return make() if convert is None else make(convert(payload))
