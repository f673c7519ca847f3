"""The signature is the interface: arguments checked and converted from it, and described.

Arguments arrive as JSON, so each parameter needs a type that JSON can carry: str, int, float,
bool, None, Literal, Optional and other unions of these, list and dict with str keys.
"""

from __future__ import annotations

import inspect
import json
import re
import types
import typing
from typing import Any, Literal, Union, cast

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Signature", "SignatureError", "WrongArgumentError"]


class SignatureError(TypeError):
    """A parameter has no type, or one that JSON cannot carry."""


class WrongArgumentError(ValueError):
    """An argument is missing, unknown, or of another type than its parameter."""


_NAMES = {str: "str", int: "int", float: "float", bool: "bool", type(None): "None"}
_SCHEMAS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}


class Signature:
    """What a program may be called with.

    Raises:
        SignatureError: A parameter has no type, or is ``*args`` or ``**kwargs``.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        code = function.__code__
        if code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
            raise SignatureError(
                "name each parameter instead of *args or **kwargs, so that it can be checked"
            )
        if code.co_posonlyargcount:
            raise SignatureError(
                "parameters before `/` have no name to a client: remove the `/`"
            )
        # By hand, because inspect.signature and get_type_hints take half a millisecond in Wasm.
        self._names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        defaults = function.__defaults__ or ()
        positional = self._names[: code.co_argcount]
        self._defaults: dict[str, Any] = dict(
            zip(positional[len(positional) - len(defaults) :], defaults, strict=True)
        )
        self._defaults.update(function.__kwdefaults__ or {})
        hints = function.__annotations__
        if any(isinstance(hint, str) for hint in hints.values()):
            hints = typing.get_type_hints(function)
        for name in self._names:
            if name not in hints:
                raise SignatureError(
                    f"parameter {name} has no type: write `{name}: str`"
                )
        self._hints = {
            name: type(None) if hints[name] is None else hints[name]
            for name in self._names
        }
        # `heat: float = 1` is a float if it is given, so it is one by default too.
        self._float_defaults = {
            name: float(default)
            for name, default in self._defaults.items()
            if type(default) is int and self._hints[name] is float
        }
        self._defaults.update(self._float_defaults)

    def documentation(self) -> str:
        """Return the function's docstring up to its sections."""
        docstring = inspect.getdoc(self._function) or ""
        return re.split(r"\n\s*\n?\w+:\n", docstring, maxsplit=1)[0].strip()

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments object.

        Raises:
            SignatureError: A parameter's type is none that JSON can carry.
        """
        descriptions = _describe_parameters(inspect.getdoc(self._function) or "")
        properties = {}
        for name in self._names:
            schema = dict(_make_schema(self._hints[name], name))
            if name in descriptions:
                schema["description"] = descriptions[name]
            if name in self._defaults:
                schema["default"] = _checked_default(self._defaults[name], name)
            properties[name] = schema
        return {
            "type": "object",
            "properties": properties,
            "required": [n for n in self._names if n not in self._defaults],
            "additionalProperties": False,
        }

    def convert(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments, checked, by name of parameter.

        Defaults are left to the function, but for ints that stand for floats.

        Raises:
            WrongArgumentError: It names the argument, what was expected and what came.
        """
        for name in arguments:
            if name not in self._hints:
                takes = (
                    f"it takes {', '.join(self._names)}"
                    if self._names
                    else "it takes none"
                )
                raise WrongArgumentError(f"there is no argument {name!r}: {takes}")
        for name in self._names:
            if name not in arguments and name not in self._defaults:
                raise WrongArgumentError(f"argument {name!r} is missing")
        return self._float_defaults | {
            name: _convert(value, self._hints[name], name)
            for name, value in arguments.items()
        }


def _checked_default(value: Any, name: str) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        raise SignatureError(
            f"parameter {name} has a default that JSON cannot carry: use None instead, "
            "and put the value in its place in the function"
        ) from None
    return value


def _describe_parameters(docstring: str) -> dict[str, str]:
    """Read the ``Args:`` section of a docstring in Google style."""
    section = re.search(r"(?:^|\n)Args:\n((?:[ \t]+.*\n?|\n)+)", docstring)
    if section is None:
        return {}
    entries = re.findall(
        r"^ {4}(\w+)[^:\n]*: *(.*(?:\n {5,}.*)*)", section.group(1), re.MULTILINE
    )
    return {name: " ".join(text.split()) for name, text in entries}


def _make_schema(hint: Any, where: str) -> Mapping[str, Any]:
    if hint in _SCHEMAS:
        return _SCHEMAS[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return {"enum": list(args)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_make_schema(arg, where) for arg in args]}
    if hint is list or origin is list:
        return {"type": "array", "items": _make_schema(args[0], where) if args else {}}
    if hint is dict or (origin is dict and args[0] is str):
        values: Mapping[str, Any] = _make_schema(args[1], where) if args else {}
        return {"type": "object", "additionalProperties": values}
    raise SignatureError(
        f"parameter {where} has the type {_name_of(hint)}, which an argument cannot have: "
        "use str, int, float, bool, Literal, Optional, list or dict[str, ...]"
    )


def _name_of(hint: Any) -> str:
    if hint in _NAMES:
        return _NAMES[hint]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(_name_of(arg) for arg in args)
    if origin is list:
        return f"list of {_name_of(args[0])}"
    return str(getattr(hint, "__name__", None) or hint)


class _MismatchError(Exception):
    pass


def _convert(value: Any, hint: Any, name: str) -> Any:
    try:
        return _fit(value, hint)
    except _MismatchError:
        kind = cast("object", type(value))
        shown = json.dumps(value, ensure_ascii=False)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        raise WrongArgumentError(
            f"argument {name!r}: expected {_name_of(hint)}, "
            f"got {shown} ({_name_of(kind)})"
        ) from None


def _fit(value: Any, hint: Any) -> Any:
    """Return ``value`` as ``hint`` has it; an int is a float too, but a bool is no int."""
    if hint is Any:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint in _NAMES:
        if type(value) is hint:
            return value
        raise _MismatchError
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(type(value) is type(arg) and value == arg for arg in args):
            return value
        raise _MismatchError
    if origin in (Union, types.UnionType):
        for arg in args:
            try:
                return _fit(value, arg)
            except _MismatchError:
                continue
        raise _MismatchError
    if (hint is list or origin is list) and isinstance(value, list):
        items = cast("list[object]", value)
        return [_fit(item, args[0]) for item in items] if args else items
    if (hint is dict or origin is dict) and isinstance(value, dict):
        members = cast("dict[str, object]", value)
        return {k: _fit(v, args[1]) for k, v in members.items()} if args else members
    raise _MismatchError
