"""Tools that a model may call: Python functions, with a schema from their signature."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import keyword
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from inferlet_py._nursery import open_nursery
from inferlet_py._signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

__all__ = ["Tool", "ToolCall", "ToolResult", "run_tools", "tool"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """What a model wants to have called.

    Attributes:
        name: Of the tool.
        arguments: By name, as the model wrote them.
        call_id: As the model wrote it, if its format has one.
        error: What is wrong with a call that cannot be read; such a call is not made.
    """

    name: str
    arguments: Mapping[str, Any]
    call_id: str = ""
    error: str = ""

    def message(self) -> dict[str, Any]:
        """Return it as an entry of ``tool_calls`` of an assistant's message."""
        function = {"name": self.name, "arguments": dict(self.arguments)}
        entry = {"type": "function", "function": function}
        return {"id": self.call_id, **entry} if self.call_id else entry


@dataclasses.dataclass(frozen=True)
class ToolResult:
    """What came of a call.

    Attributes:
        call: The call.
        text: What the model is told: a text as it is, anything else as JSON.
        error: What the tool raised; None if it returned.
    """

    call: ToolCall
    text: str
    error: Exception | None = None

    def message(self) -> dict[str, Any]:
        """Return it as a message of the role ``tool``."""
        entry = {"role": "tool", "name": self.call.name, "content": self.text}
        has_id = bool(self.call.call_id)
        return {**entry, "tool_call_id": self.call.call_id} if has_id else entry


class Tool(Generic[P, R]):
    """What a model may call; made by :func:`tool`. Calling it calls the function.

    Args:
        name: What the model calls it.
        description: What the model is told of it.
        parameters: JSON Schema of the object with its arguments.
        run: Gets the arguments by name, as JSON has them; returns what JSON can carry. It may be
            asynchronous.
        function: What calling the tool calls; ``run`` with keywords without.

    Attributes:
        name: As given; so are ``description`` and ``parameters``.
    """

    def __init__(
        self,
        *,
        name: str,
        description: str,
        parameters: Mapping[str, Any],
        run: Callable[[Mapping[str, Any]], Any],
        function: Callable[P, R] | None = None,
    ) -> None:
        self.name, self.description = name, description
        self.parameters = parameters
        self._run, self._function = run, function
        if function is not None:
            functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._function is not None:
            return self._function(*args, **kwargs)
        if args:
            raise TypeError(f"{self.name} takes its arguments by name")
        return cast("R", self._run(kwargs))

    def spec(self) -> dict[str, Any]:
        """Return the tool as OpenAI's interface has it, and as chat templates read it."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": dict(self.parameters),
            },
        }

    async def run(self, arguments: Mapping[str, Any]) -> Any:
        """Return what the tool makes of arguments as a model wrote them.

        Raises:
            WrongArgumentError: They do not fit the signature.
            Exception: Whatever the tool raises.
        """
        result = self._run(arguments)
        return await result if inspect.isawaitable(result) else result


def tool(function: Callable[P, R]) -> Tool[P, R]:
    """Make a function a tool: ``@tool`` above ``def`` or ``async def``.

    Its name is the tool's, the docstring its description, the parameters with their types and the
    docstring's ``Args:`` the schema of its arguments. A parameter that Python's grammar does not
    allow, as ``from``, is written with an underscore behind it. What the function returns goes to
    the model, a text as it is and anything else as JSON; what it raises does so too.

    Raises:
        SignatureError: A parameter has no type, or one that JSON cannot carry.
    """
    signature = Signature(function)
    schema = signature.schema()
    renamed = {_plain(name): name for name in schema["properties"]}

    def run(arguments: Mapping[str, Any]) -> Any:
        given = {renamed.get(name, name): value for name, value in arguments.items()}
        call = cast("Callable[..., Any]", function)
        return call(**signature.convert(given))

    return Tool(
        name=getattr(function, "__name__", "tool"),
        description=signature.documentation(),
        parameters={
            **schema,
            "properties": {
                plain: schema["properties"][name] for plain, name in renamed.items()
            },
            "required": [_plain(name) for name in schema["required"]],
        },
        run=run,
        function=function,
    )


def _plain(name: str) -> str:
    """Return ``from`` for ``from_``."""
    plain = name.removesuffix("_")
    return plain if keyword.iskeyword(plain) else name


async def run_tools(
    calls: Sequence[ToolCall], tools: Iterable[Tool[..., Any]]
) -> list[ToolResult]:
    """Make all calls at the same time, and return their results in order.

    What a tool raises becomes a text that tells the model; so does a call of a tool that there is
    not, and one that could not be read.
    """
    by_name = {one.name: one for one in tools}
    results: dict[int, ToolResult] = {}

    async def run_one(index: int, call: ToolCall) -> None:
        results[index] = await _run_tool(call, by_name)

    async with open_nursery() as nursery:
        for index, call in enumerate(calls):
            nursery.start_soon(run_one, index, call)
    return [results[index] for index in range(len(calls))]


async def _run_tool(
    call: ToolCall, by_name: Mapping[str, Tool[..., Any]]
) -> ToolResult:
    try:
        if call.error:
            raise ValueError(call.error)
        found = by_name.get(call.name)
        if found is None:
            there = ", ".join(by_name) or "none"
            raise LookupError(f"there is no tool {call.name!r}: there is {there}")
        return ToolResult(call, _to_text(await found.run(call.arguments)))
    except Exception as error:  # noqa: BLE001 - the model is told, and may do better
        return ToolResult(call, _to_text({"error": _describe(error)}), error)


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__


def _to_text(value: object) -> str:
    """Return what a model is told of a result."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=_to_plain)


def _to_plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
