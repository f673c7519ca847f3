"""Requests to ``/v1/responses``, as launches of the programs that serve chats."""

from __future__ import annotations

from typing import Any, cast

from pie_trio.application.openai.asked import (
    MAX_TEMPERATURE,
    SAMES,
    Asked,
)
from pie_trio.application.openai.failures import OpenAIError, refuse_unsupported
from pie_trio.application.openai.fields import Fields, wrong_type, wrong_value
from pie_trio.application.openai.messages import read_arguments, read_content
from pie_trio.application.openai.requests import (
    MODEL_DECIDES,
    NOT_STORED,
    read_top_logprobs,
)
from pie_trio.application.openai.tools import read_format, read_tools

__all__ = ["read_response"]

ROLES = ("system", "developer", "user", "assistant")
LOGPROBS = "message.output_text.logprobs"
HARMLESS_INCLUDES = ("reasoning.encrypted_content",)


def read_response(body: object) -> Asked:
    """Read a request to ``/v1/responses``.

    Raises:
        OpenAIError: It makes no sense, or asks for what is not supported.
    """
    fields = Fields(body)
    model = fields.text("model", is_required=True)
    assert model is not None, "it is required"
    asked = Asked(model, is_streamed=fields.flag("stream"), has_usage=True)
    asked.arguments["messages"] = _read_input(fields)
    asked.set("max_tokens", fields.integer("max_output_tokens", 1))
    asked.set("temperature", fields.number("temperature", 0, MAX_TEMPERATURE), 1.0)
    asked.set("top_p", fields.number("top_p", 0, 1), 1.0)
    included = _read_include(fields)
    has_logprobs = LOGPROBS in included
    asked.set("logprobs", has_logprobs, False)
    read_top_logprobs(fields, asked, has_logprobs=has_logprobs)
    read_tools(fields, asked, is_flat=True)
    text = fields.inner("text")
    if text is not None:
        read_format(text.inner("format"), asked, is_flat=True)
        text.only("verbosity", "medium", why=MODEL_DECIDES)
        text.finish()
    asked.origins |= {
        "json_schema": "text.format",
        "response_format": "text.format",  # as our program for chats calls it
        "max_tokens": "max_output_tokens",
        "logprobs": "include",
        "messages": "input",
    }
    _read_rest(fields)
    return asked


def _read_rest(fields: Fields) -> None:
    # There are no built-in tools whose calls could be counted.
    fields.ignore(*SAMES, "metadata", "prompt_cache_options", "max_tool_calls")
    options = fields.inner("stream_options")
    if options is not None:
        options.only("include_obfuscation", False, why="nothing is padded")
        options.finish()
    for name in ("previous_response_id", "conversation"):
        fields.only(name, why=f"{NOT_STORED}: send what came before as 'input'")
    fields.only("store", False, why=NOT_STORED)
    fields.only("background", False, why=NOT_STORED)
    fields.only("prompt", why=NOT_STORED)
    fields.only("truncation", "disabled", why="what is too long is refused")
    fields.only("service_tier", "auto", "default", why="all requests are alike")
    for name in ("reasoning", "moderation", "context_management"):
        fields.only(name, {}, [], why=MODEL_DECIDES)
    fields.finish()


def _read_include(fields: Fields) -> list[str]:
    items = fields.sequence("include") or []
    for index, item in enumerate(items):
        if item != LOGPROBS and item not in HARMLESS_INCLUDES:
            raise refuse_unsupported(
                f"include[{index}]", f"only {LOGPROBS!r} can be included"
            )
    return items


def _read_input(fields: Fields) -> list[dict[str, Any]]:
    instructions = fields.text("instructions")
    messages = list[dict[str, Any]]()
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    value = fields.take("input")
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if value is None:
        raise OpenAIError(
            "you must provide 'input'", param="input", code="missing_required_parameter"
        )
    if not isinstance(value, list):
        raise wrong_type("input", "a string or an array of items", value)
    items = cast("list[object]", value)
    if not items:
        raise wrong_value("input", "at least one item", [])
    names = dict[str, str]()
    for index, item in enumerate(items):
        _read_item(Fields(item, f"input[{index}]"), messages, names)
    return messages


def _read_item(
    fields: Fields, messages: list[dict[str, Any]], names: dict[str, str]
) -> None:
    kind = fields.text("type") or "message"
    fields.ignore("id", "status", "phase")  # of an item that was answered before
    if kind == "message":
        role = fields.choice("role", ROLES)
        content = fields.take("content")
        if role is None or content is None:
            raise OpenAIError(
                f"{fields.name('')[:-1]!r} is a message, which has a role and content",
                param=fields.name("role" if role is None else "content"),
                code="missing_required_parameter",
            )
        text = read_content(content, fields)
        role = "system" if role == "developer" else role
        messages.append({"role": role, "content": text})
    elif kind == "function_call":
        call_id = fields.text("call_id", is_required=True)
        name = fields.text("name", is_required=True)
        assert call_id is not None, "it is required"
        assert name is not None, "it is required"
        names[call_id] = name
        function = {"name": name, "arguments": read_arguments(fields)}
        call = {"id": call_id, "type": "function", "function": function}
        # Calls that follow one another, or what was said before them, are one turn.
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        messages[-1].setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        call_id = fields.text("call_id", is_required=True)
        assert call_id is not None, "it is required"
        output = fields.take("output")
        content = read_content(output, fields, "output")
        message = {"role": "tool", "content": content, "tool_call_id": call_id}
        if call_id in names:
            message["name"] = names[call_id]
        messages.append(message)
    else:
        raise refuse_unsupported(
            fields.name("type"),
            "an item is a message, a function_call or a function_call_output",
        )
    fields.finish()
