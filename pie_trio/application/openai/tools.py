"""Tools and what may be called, as both chats and responses have them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from pie_trio.application.openai.failures import OpenAIError, refuse_unsupported
from pie_trio.application.openai.fields import Fields, wrong_type, wrong_value

if TYPE_CHECKING:
    from pie_trio.application.openai.asked import Asked

__all__ = ["read_format", "read_tools"]

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MODES = ("auto", "none", "required")


def read_tools(fields: Fields, asked: Asked, *, is_flat: bool) -> None:
    """Read ``tools``, ``tool_choice`` and ``parallel_tool_calls``.

    Args:
        fields: Of the request.
        asked: Takes them.
        is_flat: What is said of a function stands beside its type, as in responses, and not in
            an object ``function``.

    Raises:
        OpenAIError: Something is wrong, or not supported.
    """
    items = fields.sequence("tools") or []
    if len(items) > MAX_TOOLS:
        raise wrong_value("tools", f"at most {MAX_TOOLS} tools", len(items))
    tools = [
        _read_function(Fields(item, f"tools[{index}]"), is_flat=is_flat)
        for index, item in enumerate(items)
    ]
    names = [one["function"]["name"] for one in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise wrong_value(f"tools[{index}]", "names that differ", name)
    choice, allowed = _read_choice(fields.take("tool_choice"), is_flat=is_flat)
    named = allowed or ([choice["name"]] if isinstance(choice, dict) else [])
    for name in named:
        if name not in names:
            raise wrong_value("tool_choice", "a tool that is among 'tools'", name)
    if choice == "required" and not tools:
        raise wrong_value("tool_choice", "'tools' where one is required", choice)
    if allowed is not None:
        tools = [one for one in tools if one["function"]["name"] in allowed]
    asked.set("tools", tools, [])
    if tools:  # without any, there is nothing to choose
        asked.set("tool_choice", choice, "auto")
        parallel = fields.flag("parallel_tool_calls", default=True)
        asked.set("parallel_tool_calls", parallel, True)
    else:
        fields.flag("parallel_tool_calls")


def _read_function(fields: Fields, *, is_flat: bool) -> dict[str, Any]:
    kind = fields.text("type", is_required=True)
    if kind != "function":
        raise refuse_unsupported(
            fields.name("type"), f"tools are functions, and {kind!r} is none"
        )
    inner = fields if is_flat else fields.inner("function")
    if inner is None:
        raise wrong_type(fields.name("function"), "an object", None)
    name = inner.text("name", is_required=True)
    if name is None or not NAME.fullmatch(name):
        raise wrong_value(
            inner.name("name"), "up to 64 letters, digits, '_', '-' and '.'", name
        )
    function: dict[str, Any] = {"name": name}
    function["description"] = inner.text("description") or ""
    parameters = inner.take("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise wrong_type(inner.name("parameters"), "an object", parameters)
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    if inner.flag("strict"):
        function["strict"] = True
    if is_flat:
        fields.only("defer_loading", False, why="all tools are told at once")
    inner.finish()
    fields.finish()
    return {"type": "function", "function": function}


def _read_choice(
    value: object, *, is_flat: bool
) -> tuple[str | dict[str, str] | None, list[str] | None]:
    """Return the choice, and the names that alone are allowed, if not all are."""
    if value is None:
        return None, None
    if isinstance(value, str):
        if value not in MODES:
            raise wrong_value("tool_choice", f"one of {', '.join(MODES)}", value)
        return value, None
    fields = Fields(value, "tool_choice")
    kind = fields.text("type", is_required=True)
    if kind == "function":
        return {"name": _read_name(fields, is_flat=is_flat)}, None
    if kind != "allowed_tools":
        raise refuse_unsupported(
            "tool_choice.type", "a choice is a function or allowed_tools"
        )
    inner = fields if is_flat else fields.inner("allowed_tools")
    if inner is None:
        raise wrong_type("tool_choice.allowed_tools", "an object", None)
    mode = inner.choice("mode", ("auto", "required"))
    items = inner.sequence("tools") or []
    allowed = [
        _read_allowed(Fields(item, inner.name(f"tools[{index}]")), is_flat=is_flat)
        for index, item in enumerate(items)
    ]
    if not allowed or mode is None:
        raise OpenAIError(
            "allowed_tools takes a mode and at least one tool",
            param="tool_choice",
            code="missing_required_parameter",
        )
    return mode, allowed


def _read_allowed(fields: Fields, *, is_flat: bool) -> str:
    fields.choice("type", ("function",))
    return _read_name(fields, is_flat=is_flat)


def _read_name(fields: Fields, *, is_flat: bool) -> str:
    inner = fields if is_flat else fields.inner("function")
    if inner is None:
        raise wrong_type(fields.name("function"), "an object", None)
    name = inner.text("name", is_required=True)
    assert name is not None, "it is required"
    return name


def read_format(fields: Fields | None, asked: Asked, *, is_flat: bool) -> None:
    """Read what form a reply has to have.

    Args:
        fields: ``response_format`` of a chat, or ``text.format`` of a response.
        asked: Takes it.
        is_flat: The schema stands beside the type, as in responses.

    Raises:
        OpenAIError: There is no such form.
    """
    if fields is None:
        return
    kind = fields.choice("type", ("text", "json_object", "json_schema"))
    if kind == "json_object":
        asked.set("json_schema", {"type": "object"})
    elif kind == "json_schema":
        inner = fields if is_flat else fields.inner("json_schema")
        if inner is None:
            raise wrong_type(fields.name("json_schema"), "an object", None)
        inner.text("name", is_required=True)
        inner.text("description")
        inner.flag("strict")  # what comes fits the schema, whether or not it must
        schema = inner.take("schema")
        if schema is not None and not isinstance(schema, dict | bool):
            raise wrong_type(inner.name("schema"), "an object", schema)
        asked.arguments["json_schema"] = {} if schema is None else schema
        inner.finish()
    elif kind is None:
        raise OpenAIError(
            f"you must provide {fields.name('type')!r}",
            param=fields.name("type"),
            code="missing_required_parameter",
        )
    fields.finish()
