"""Messages of a chat, as chat templates read them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from pie_trio.application.openai.failures import OpenAIError, refuse_unsupported
from pie_trio.application.openai.fields import Fields, wrong_type, wrong_value

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["read_arguments", "read_content", "read_messages"]

ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PARTS = ("text", "input_text", "output_text", "refusal")


def read_messages(items: Sequence[object]) -> list[dict[str, Any]]:
    """Return messages with texts as content, and calls with objects as arguments.

    Raises:
        OpenAIError: One is none, or has what is not supported.
    """
    if not items:
        raise wrong_value("messages", "at least one message", [])
    names = dict[str, str]()  # of the functions that were called, by the calls' ids
    return [
        _read_message(Fields(item, f"messages[{index}]"), names)
        for index, item in enumerate(items)
    ]


def _read_message(fields: Fields, names: dict[str, str]) -> dict[str, Any]:
    role = fields.text("role", is_required=True)
    if role == "function":
        raise refuse_unsupported(fields.name("role"), "use 'tools' and the role 'tool'")
    if role not in ROLES:
        raise wrong_value(
            fields.name("role"), f"one of {', '.join(map(repr, ROLES))}", role
        )
    content = fields.take("content")
    calls = fields.sequence("tool_calls") if role == "assistant" else None
    if content is None and not calls:
        raise OpenAIError(
            f"you must provide {fields.name('content')!r}",
            param=fields.name("content"),
            code="missing_required_parameter",
        )
    message: dict[str, Any] = {
        # Templates know no developer, who says what a system message does.
        "role": "system" if role == "developer" else role,
        "content": "" if content is None else read_content(content, fields),
    }
    if (name := fields.text("name")) is not None:
        message["name"] = name
    if calls:
        message["tool_calls"] = [
            _read_call(Fields(call, fields.name(f"tool_calls[{index}]")), names)
            for index, call in enumerate(calls)
        ]
    if role == "tool":
        call_id = fields.text("tool_call_id", is_required=True)
        assert call_id is not None, "it is required"
        message["tool_call_id"] = call_id
        if call_id in names:
            message["name"] = names[call_id]
    if role == "assistant":
        fields.text("refusal")  # the content says it, or nothing does
        fields.ignore("annotations")
        fields.only("audio", why="there is no audio")
        fields.only("function_call", why="use 'tool_calls'")
    fields.finish()
    return message


def read_content(value: object, fields: Fields, key: str = "content") -> str:
    """Return the text of a content: a text, or parts.

    Raises:
        OpenAIError: It is neither, or a part is no text.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(fields.name(key), "a string or an array of parts", value)
    texts = list[str]()
    for index, item in enumerate(cast("list[object]", value)):
        part = Fields(item, fields.name(f"{key}[{index}]"))
        kind = part.text("type", is_required=True)
        if kind not in TEXT_PARTS:
            raise refuse_unsupported(part.name("type"), f"{kind!r} is no text")
        text = part.text("refusal" if kind == "refusal" else "text", is_required=True)
        texts.append(text or "")
        part.ignore("annotations", "logprobs", "prompt_cache_breakpoint")
        part.finish()
    return "".join(texts)


def _read_call(fields: Fields, names: dict[str, str]) -> dict[str, Any]:
    call_id = fields.text("id", is_required=True)
    kind = fields.text("type")
    if kind not in (None, "function"):
        raise refuse_unsupported(fields.name("type"), "calls are of functions")
    inner = fields.inner("function")
    if inner is None:
        raise wrong_type(fields.name("function"), "an object", None)
    name = inner.text("name", is_required=True)
    assert call_id is not None, "it is required"
    assert name is not None, "it is required"
    arguments = read_arguments(inner)
    inner.finish()
    fields.finish()
    names[call_id] = name
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def read_arguments(fields: Fields) -> dict[str, Any]:
    """Return the arguments of a call, which are JSON in a text.

    Raises:
        OpenAIError: They are none.
    """
    text = fields.text("arguments", is_required=True)
    try:
        found: object = json.loads(text or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise wrong_value(fields.name("arguments"), "a JSON object as text", text)
    return cast("dict[str, Any]", found)
