"""The decorator that makes a function a program."""

from __future__ import annotations

import functools
import inspect
import json
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from inferlet_py import _kernel
from inferlet_py._logging import forward_logging
from inferlet_py._signature import Signature, SignatureError, WrongArgumentError
from inferlet_py._typed import object_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inferlet_py._host import Host

__all__ = ["Inferlet", "inferlet", "schema_of"]

P = ParamSpec("P")
R = TypeVar("R")


class Inferlet(Generic[P, R]):
    """A program: an asynchronous function and its signature. Calling it calls the function."""

    def __init__(self, function: Callable[P, Awaitable[R]]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return self.function(*args, **kwargs)

    def describe(self) -> dict[str, Any]:
        """Return name, documentation and the JSON Schema of arguments and result.

        Raises:
            SignatureError: A parameter cannot be an argument, or the result is none.
        """
        signature = Signature(self.function)
        return {
            "name": getattr(self.function, "__name__", "inferlet"),
            "documentation": signature.documentation(),
            "arguments": signature.schema(),
            "result": signature.result_schema(),
        }

    def run(self, host: Host) -> str:
        """Run the program with the arguments that the host has, and return its result as JSON.

        Raises:
            WrongArgumentError: The arguments do not fit the signature.
            TypeError: The result is nothing that JSON can carry, or not what the signature says.
            BaseException: Whatever the program raised.
        """
        arguments = json.loads(host.get_arguments())
        if not isinstance(arguments, dict):
            raise WrongArgumentError("arguments are a JSON object, by name")
        by_name = cast("dict[str, Any]", arguments)
        signature = Signature(self.function)
        converted = signature.convert(by_name)
        with forward_logging():
            result = _kernel.run(
                functools.partial(self.function, **converted), waiter=host
            )
        encoded = encode_result(result)
        signature.check_result(result)
        return encoded


def inferlet(function: Callable[P, Awaitable[R]]) -> Inferlet[P, R]:
    """Make an asynchronous function the program of its file. Its signature is its interface.

    Raises:
        SignatureError: The function is not asynchronous.
    """
    name = getattr(function, "__name__", "main")
    if inspect.isasyncgenfunction(function):
        raise SignatureError(
            f"{name} has a `yield`, but a program returns once: send() what comes before"
        )
    if not inspect.iscoroutinefunction(function):
        raise SignatureError(
            f"{name} is not asynchronous: write `async def {name}` below @inferlet"
        )
    return Inferlet(function)


def schema_of(program: Inferlet[..., Any]) -> dict[str, Any]:
    """Return what a program takes and returns, as JSON Schemas.

    Returns:
        ``name`` and ``documentation``, both str; ``arguments``, the schema of an object with
        one member a parameter; ``result``, the schema of what the program returns.

    Raises:
        SignatureError: A parameter cannot be an argument, or the result is none.
    """
    return program.describe()


def encode_result(result: object) -> str:
    """Return a program's result as JSON; dataclasses become objects."""
    try:
        return json.dumps(result, default=object_of, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        message = str(error)
    raise TypeError(  # here, so that no frames of the encoder are in the traceback
        f"the program returned {message}: return str, int, float, bool, None, list, dict or "
        "dataclasses of these"
    )
