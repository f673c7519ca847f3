"""Grammars of tool calls: a model can call no tool that there is not, nor with wrong arguments."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferlet_py._processors import Grammar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inferlet_py._tool_calls import ToolFormat
    from inferlet_py._tools import Tool

__all__ = ["tool_call_grammar"]

_MARKER = "<tool_call>"


@dataclass(frozen=True)
class _Frame:
    """How a format writes calls: what stands around all of them, each one, and between them."""

    arguments: str
    opening: str = ""
    head: str = ""
    tail: str = ""
    between: str = ""
    closing: str = ""


_FRAMES = {
    "hermes": _Frame(
        "arguments", head=f"{_MARKER}\n", tail="\n</tool_call>", between="\n"
    ),
    "llama-3": _Frame("parameters", between="; "),
    "mistral": _Frame("arguments", opening="[", between=", ", closing="]"),
}


def tool_call_grammar(
    tools: Iterable[Tool[..., Any]],
    tool_format: ToolFormat = "hermes",
    *,
    is_required: bool = True,
    has_many: bool = True,
    json_schema: Mapping[str, Any] | bool | None = None,
) -> Grammar:
    """Return the grammar of calls of these tools, with arguments that fit their schemas.

    Args:
        tools: At least one.
        tool_format: How the model writes calls: see :class:`ToolCallParser`.
        is_required: There has to be a call. If not, there may be a text instead, or before it.
        has_many: There may be several.
        json_schema: What a text that stands in place of calls has to fit.

    Raises:
        ValueError: There is no tool, or no such grammar in this format.
    """
    found = list(tools)
    frame = _FRAMES.get(tool_format)
    if not found or frame is None:
        raise ValueError(
            "a grammar of tool calls takes at least one tool, and one of the formats "
            f"{', '.join(_FRAMES)}; got {len(found)} tools in {tool_format!r}"
        )
    more = f"({_quote(frame.between)} call)*" if has_many else ""
    lines = [f"call: {_quote(frame.head)} object {_quote(frame.tail)}"]
    lines.append(f"object: {' | '.join(f'object_{i}' for i in range(len(found)))}")
    for index, one in enumerate(found):
        head = f'{{"name": {json.dumps(one.name)}, "{frame.arguments}": '
        lines += [
            f"object_{index}: {_quote(head)} arguments_{index} {_quote('}')}",
            # A document of its own, so that references in it lead into it.
            f"arguments_{index}: %json {json.dumps(one.parameters)}",
        ]
    calls = f"{_quote(frame.opening)} call {more} {_quote(frame.closing)}"
    if is_required:
        lines.append(f"start: {calls}")
    elif json_schema is not None:
        lines += [
            f"start: {calls} | answer",
            f"answer: %json {json.dumps(json_schema)}",
        ]
    elif tool_format == "hermes":
        # The lexer takes the longest match: a text that may hold no marker, or up to one.
        rest = f"{_quote(frame.head.removeprefix(_MARKER))} object {_quote(frame.tail)}"
        lines += [
            f"start: TEXT | led {rest} {more}",
            f"led[lazy]: /(?s:.*){_MARKER}/",
            f"TEXT: /(?s:.*)/ & ~/(?s:.*){_MARKER}(?s:.*)/",
        ]
    else:
        raise ValueError(
            f"in the format {tool_format} a text and calls cannot be told apart beforehand: "
            "give is_required, or a json_schema of the text"
        )
    return Grammar.lark("\n".join(lines))


def _quote(text: str) -> str:
    """Return a text as Lark has it; nothing where there is none."""
    return json.dumps(text) if text else ""
