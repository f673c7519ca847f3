"""The signature is the interface: arguments checked and converted from it, and described.

Arguments arrive as JSON, and the result leaves as JSON, so each parameter and the result need a type
that JSON can carry; ``_typed`` knows them.
"""

from __future__ import annotations

import inspect
import json
import re
import typing
from typing import Any

from inferlet_py._typed import (
    MismatchError,
    SignatureError,
    describe_parameters,
    fit,
    name_of,
    schema_of,
    to_plain,
)

if typing.TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Signature", "SignatureError", "WrongArgumentError", "WrongResultError"]


class WrongArgumentError(ValueError):
    """An argument is missing, unknown, or of another type than its parameter."""


class WrongResultError(TypeError):
    """What a program returned is of another type than its signature says."""


class Signature:
    """What a program may be called with, and what it returns.

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
        hints = _find_hints(function)
        for name in self._names:
            if name not in hints:
                raise SignatureError(
                    f"parameter {name} has no type: write `{name}: str`"
                )
        self._hints = {name: _type_of(hints[name]) for name in self._names}
        self._result = _type_of(hints.get("return", Any))
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
        descriptions = describe_parameters(inspect.getdoc(self._function) or "")
        properties = {}
        for name in self._names:
            schema = schema_of(self._hints[name], f"parameter {name}")
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

    def result_schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the result; empty where the signature says nothing.

        Raises:
            SignatureError: Its type is none that JSON can carry.
        """
        return schema_of(self._result, "the result")

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

    def check_result(self, result: object) -> None:
        """Raise unless a result is what the signature says.

        Raises:
            WrongResultError: It is not; the message names the place.
            TypeError: It is nothing that JSON can carry.
        """
        if result is None and self._result is type(None):
            return
        if self._result is Any or self._result is object:
            return
        try:
            fit(to_plain(result), self._result)
        except MismatchError as error:
            raise WrongResultError(
                f"the program's result{error.path}: expected {error.wanted}, got "
                f"{_show(error.value)}: return that, or change the type after `->`"
            ) from None


def _find_hints(function: Callable[..., Any]) -> Mapping[str, Any]:
    try:
        hints: Mapping[str, Any] = function.__annotations__
        if any(isinstance(hint, str) for hint in hints.values()):
            return typing.get_type_hints(function)
    except NameError as error:
        raise SignatureError(
            f"the type {error.name} is not known when the program runs: import it outside of "
            "`if TYPE_CHECKING:`"
        ) from None
    return hints


def _type_of(hint: Any) -> Any:
    return type(None) if hint is None else hint


def _checked_default(value: Any, name: str) -> Any:
    """Return a default as JSON has it."""
    try:
        return to_plain(value)
    except (TypeError, ValueError):
        raise SignatureError(
            f"parameter {name} has a default that JSON cannot carry: use None instead, "
            "and put the value in its place in the function"
        ) from None


def _convert(value: Any, hint: Any, name: str) -> Any:
    try:
        return fit(value, hint)
    except MismatchError as error:
        # Inside of an object, the place says more than the type of the whole.
        is_deep = "." in error.path
        where = f"{name!r} at {error.path}" if is_deep else repr(name)
        wanted = error.wanted if is_deep else name_of(hint)
        found = error.value if is_deep else value
    raise WrongArgumentError(f"argument {where}: expected {wanted}, got {_show(found)}")


def _show(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{shown} ({name_of(type(value))})"
