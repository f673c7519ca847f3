"""Types that JSON can carry: their JSON Schema, and JSON values as what they say.

These are str, int, float, bool, None, Any, Literal, Optional and other unions, list, tuple and dict
with str keys, enums, and dataclasses and TypedDicts of these.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import enum
import inspect
import json
import re
import types
import typing
from typing import Annotated, Any, Literal, NotRequired, Required, Union, cast

if typing.TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MismatchError",
    "SignatureError",
    "describe_parameters",
    "fit",
    "name_of",
    "object_of",
    "schema_of",
    "to_plain",
]


class SignatureError(TypeError):
    """A parameter has no type, or one that JSON cannot carry."""


class MismatchError(Exception):
    """A value is not of the type that is wanted.

    Attributes:
        path: Where it is inside of the whole, as ``.items[2].name``.
        wanted: The type there.
        value: What is there.
    """

    def __init__(self, wanted: str, value: object) -> None:
        super().__init__(wanted, value)
        self.path = ""
        self.wanted, self.value = wanted, value


_NAMES = {str: "str", int: "int", float: "float", bool: "bool", type(None): "None"}
_SCHEMAS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
    object: {},
}
_LISTS = (list, collections.abc.Sequence, collections.abc.Iterable)
_DICTS = (dict, collections.abc.Mapping)


# ---- schemas -----------------------------------------------------------------------------------


def schema_of(
    hint: Any, where: str = "", *, inside: tuple[Any, ...] = ()
) -> dict[str, Any]:
    """Return the JSON Schema of a type.

    Args:
        hint: The type.
        where: What has it, for the error.
        inside: The classes whose schemas this one is part of.

    Raises:
        SignatureError: JSON cannot carry it, or it contains itself.
    """
    if hint in _SCHEMAS:
        return dict(_SCHEMAS[hint])
    origin, args = _split(hint)
    if origin is Annotated:
        return schema_of(args[0], where, inside=inside)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(arg, where, inside=inside) for arg in args]}
    if _is_row(origin, args):
        row = [schema_of(arg, where, inside=inside) for arg in args]
        bounds = {"minItems": len(row), "maxItems": len(row)}
        return {"type": "array", "prefixItems": row, **bounds}
    if origin in _LISTS or origin is tuple:
        items = schema_of(args[0], where, inside=inside) if args else {}
        return {"type": "array", "items": items}
    if origin in _DICTS and (not args or args[0] is str):
        values = schema_of(args[1], where, inside=inside) if args else {}
        return {"type": "object", "additionalProperties": values}
    if (members := _members_of(hint)) is not None:
        return {"enum": [member.value for member in members]}
    fields = _fields_of(hint)
    if fields is not None:
        return _object_schema(hint, fields, inside)
    raise SignatureError(
        f"{where or 'a value'} has the type {name_of(hint)}, which JSON cannot carry: use "
        "str, int, float, bool, Literal, Optional, list, tuple, dict[str, ...], an enum, or a "
        "dataclass or TypedDict of these"
    )


def _object_schema(
    hint: Any, fields: Mapping[str, _Field], inside: tuple[Any, ...]
) -> dict[str, Any]:
    if hint in inside:
        raise SignatureError(
            f"{name_of(hint)} contains itself, which has no schema here"
        )
    descriptions = describe_parameters(inspect.getdoc(hint) or "", section="Attributes")
    properties: dict[str, Any] = {}
    for name, field in fields.items():
        where = f"{name_of(hint)}.{name}"
        properties[name] = schema_of(field.hint, where, inside=(*inside, hint))
        if name in descriptions:
            properties[name]["description"] = descriptions[name]
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name, field in fields.items() if field.is_required],
        "additionalProperties": False,
    }


def describe_parameters(docstring: str, *, section: str = "Args") -> dict[str, str]:
    """Read the ``Args:`` section of a docstring in Google style, or another one like it."""
    found = re.search(rf"(?:^|\n){section}:\n((?:[ \t]+.*\n?|\n)+)", docstring)
    if found is None:
        return {}
    entries = re.findall(
        r"^ {4}(\w+)[^:\n]*: *(.*(?:\n {5,}.*)*)", found.group(1), re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}


def name_of(hint: Any) -> str:
    """Return what to call a type in a message."""
    if hint in _NAMES:
        return _NAMES[hint]
    origin, args = _split(hint)
    if origin is Annotated:
        return name_of(args[0])
    if origin is Any or origin is object:
        return "anything"
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(name_of(arg) for arg in args)
    if _is_row(origin, args):
        return f"list of {len(args)} ({', '.join(map(name_of, args))})"
    if args and (origin in _LISTS or origin is tuple):
        return f"list of {name_of(args[0])}"
    if args and origin in _DICTS:
        return f"dict of {name_of(args[1])}"
    if (members := _members_of(hint)) is not None:
        return f"one of {', '.join(repr(member.value) for member in members)}"
    return str(getattr(hint, "__name__", None) or hint)


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return origin and arguments of a generic type; itself and nothing of another."""
    origin = typing.get_origin(hint)
    return (hint, ()) if origin is None else (origin, typing.get_args(hint))


def _is_row(origin: Any, args: tuple[Any, ...]) -> bool:
    """Say whether it is a tuple of so many values, and not one of any length."""
    return origin is tuple and bool(args) and args[-1] is not Ellipsis


# ---- classes -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Field:
    hint: Any
    is_required: bool


def _members_of(hint: object) -> list[enum.Enum] | None:
    """Return the members of an enum; None if it is none."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return list(hint)
    return None


def _is_dataclass(hint: object) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _fields_of(hint: Any) -> dict[str, _Field] | None:
    """Return the fields of a dataclass or a TypedDict; None if it is neither."""
    if _is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return {
            field.name: _Field(
                hints[field.name],
                field.default is dataclasses.MISSING
                and field.default_factory is dataclasses.MISSING,
            )
            for field in dataclasses.fields(hint)
            if field.init
        }
    if typing.is_typeddict(hint):
        required: frozenset[str] = hint.__required_keys__
        hints = typing.get_type_hints(hint, include_extras=True)
        return {
            name: _Field(_without_wrapper(inner), _is_required(inner, name in required))
            for name, inner in hints.items()
        }
    return None


def _without_wrapper(hint: Any) -> Any:
    if typing.get_origin(hint) in (Required, NotRequired):
        return typing.get_args(hint)[0]
    return hint


def _is_required(hint: Any, by_class: bool) -> bool:
    # With postponed annotations, the class cannot know.
    origin = typing.get_origin(hint)
    return origin is Required or (by_class and origin is not NotRequired)


# ---- values ------------------------------------------------------------------------------------


def fit(value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint`` has it; an int is a float too, but a bool is no int.

    Raises:
        MismatchError: It does not fit.
    """
    if hint is Any or hint is object:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint in _NAMES:
        if type(value) is hint:
            return value
        raise MismatchError(name_of(hint), value)
    origin, args = _split(hint)
    if origin is Annotated:
        return fit(value, args[0])
    if origin is Literal:
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
        raise MismatchError(name_of(hint), value)
    if origin in (Union, types.UnionType):
        return _fit_union(value, hint, args)
    if (origin in _LISTS or origin is tuple) and isinstance(value, list):
        return _fit_list(cast("list[object]", value), hint, origin, args)
    if origin in _DICTS and isinstance(value, dict):
        members = cast("dict[str, object]", value)
        if not args:
            return members
        return {key: _fit_at(f".{key}", v, args[1]) for key, v in members.items()}
    if (cases := _members_of(hint)) is not None:
        for member in cases:
            if type(member.value) is type(value) and member.value == value:
                return member
        raise MismatchError(name_of(hint), value)
    fields = _fields_of(hint)
    if fields is not None and isinstance(value, dict):
        return _fit_object(cast("dict[str, object]", value), hint, fields)
    raise MismatchError(name_of(hint), value)


def _fit_list(
    items: list[object], hint: Any, origin: Any, args: tuple[Any, ...]
) -> Any:
    if _is_row(origin, args):
        if len(items) != len(args):
            raise MismatchError(name_of(hint), items)
        hints = args
    else:
        inner = args[0] if args else Any
        if inner in _NAMES and all(type(item) is inner for item in items):
            # As a prompt's tokens are: thousands, and each would take a guest microseconds.
            return tuple(items) if origin is tuple else items
        hints = (inner,) * len(items)
    found = [
        _fit_at(f"[{i}]", item, inner)
        for i, (item, inner) in enumerate(zip(items, hints, strict=True))
    ]
    return tuple(found) if origin is tuple else found


def _fit_union(value: Any, hint: Any, args: tuple[Any, ...]) -> Any:
    deepest: MismatchError | None = None
    for arg in args:
        try:
            return fit(value, arg)
        except MismatchError as error:
            if error.path and (deepest is None or len(error.path) > len(deepest.path)):
                deepest = error
    # Of an object that nearly fits one case, what does not is worth more than all the cases.
    raise deepest or MismatchError(name_of(hint), value)


def _fit_object(
    value: dict[str, object], hint: Any, fields: Mapping[str, _Field]
) -> Any:
    for name in value:
        if name not in fields:
            has = ", ".join(fields) or "none"
            raise MismatchError(f"a field of {name_of(hint)} ({has})", name)
    for name, field in fields.items():
        if field.is_required and name not in value:
            raise MismatchError(f"{name_of(hint)} with {name}", value)
    converted = {
        name: _fit_at(f".{name}", member, fields[name].hint)
        for name, member in value.items()
    }
    return converted if typing.is_typeddict(hint) else hint(**converted)


def _fit_at(step: str, value: Any, hint: Any) -> Any:
    try:
        return fit(value, hint)
    except MismatchError as error:
        error.path = step + error.path
        raise


def to_plain(value: object) -> Any:
    """Return a value as JSON has it: dataclasses become objects, tuples lists.

    Raises:
        TypeError: It is nothing that JSON can carry.
        ValueError: It contains itself.
    """
    return json.loads(json.dumps(value, default=object_of))


def object_of(value: object) -> object:
    """Return what stands for a dataclass or an enum in JSON, for ``json.dumps``.

    Raises:
        TypeError: It is neither.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"a {type(value).__name__}, which JSON cannot carry")
