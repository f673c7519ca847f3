"""The decorator that makes a function a program."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from inferlet_py import _kernel
from inferlet_py._signature import Signature, SignatureError, WrongArgumentError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from inferlet_py._host import Host

__all__ = ["Inferlet", "inferlet"]

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
        """Return name, documentation and the JSON Schema of the arguments.

        Raises:
            SignatureError: A parameter cannot be an argument.
        """
        signature = Signature(self.function)
        return {
            "name": getattr(self.function, "__name__", "inferlet"),
            "documentation": signature.documentation(),
            "arguments": signature.schema(),
        }

    def run(self, host: Host) -> str:
        """Run the program with the arguments that the host has, and return its result as JSON.

        Raises:
            WrongArgumentError: The arguments do not fit the signature.
            TypeError: The result is nothing that JSON can carry.
            BaseException: Whatever the program raised.
        """
        arguments = json.loads(host.get_arguments())
        if not isinstance(arguments, dict):
            raise WrongArgumentError("arguments are a JSON object, by name")
        by_name = cast("dict[str, Any]", arguments)
        converted = Signature(self.function).convert(by_name)
        result = _kernel.run(functools.partial(self.function, **converted), waiter=host)
        return encode_result(result)


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


def encode_result(result: object) -> str:
    """Return a program's result as JSON; dataclasses become objects."""

    def convert(value: object) -> object:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return dataclasses.asdict(value)
        raise TypeError(
            f"the program returned a {type(value).__name__}, which JSON cannot carry: "
            "return str, int, float, bool, None, list, dict or dataclasses of these"
        )

    try:
        return json.dumps(result, default=convert, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        message = str(error)
    raise TypeError(
        message
    )  # here, so that no frames of the encoder are in the traceback
