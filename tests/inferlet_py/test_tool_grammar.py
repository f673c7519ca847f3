"""Grammars of tool calls, over a vocabulary of bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from inferlet_py import Tool, ToolCallParser, tool_call_grammar
from pie_trio.inference.grammar import GrammarVocabulary, compile_grammar

if TYPE_CHECKING:
    from inferlet_py import Grammar
    from inferlet_py._tool_calls import ToolFormat

VOCABULARY = GrammarVocabulary(
    [*(bytes([byte]) for byte in range(256)), b"", b""], eos_token_ids=(257,)
)


def make_tool(name: str, parameters: dict[str, Any]) -> Tool[..., Any]:
    return Tool(name=name, description="", parameters=parameters, run=dict)


WEATHER = make_tool(
    "weather",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}},
        "required": ["city"],
        "additionalProperties": False,
        "$defs": {"city": {"enum": ["Oslo", "Rome"]}},
    },
)
NOW = make_tool(
    'n"w', {"type": "object", "properties": {}, "additionalProperties": False}
)
OSLO = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
NO = '<tool_call>\n{"name": "n\\"w", "arguments": {}}\n</tool_call>'
LLAMA = '{"name": "weather", "parameters": {"city": "Oslo"}}'
MISTRAL = '{"name": "weather", "arguments": {"city": "Oslo"}}'
ANY: dict[str, Any] = {"is_required": False}
JSON: dict[str, Any] = ANY | {"json_schema": {"type": "array"}}


def matches(grammar: Grammar, text: str) -> bool:
    compiled = compile_grammar(grammar.kind, grammar.text, VOCABULARY).matcher()
    data = list(text.encode())
    return compiled.accept(data) == len(data) and compiled.is_accepting


@pytest.mark.parametrize(
    ("tool_format", "options", "good", "bad"),
    [
        ("hermes", {}, [OSLO, NO, f"{OSLO}\n{NO}"], ["", "x", f"x{OSLO}", f"{OSLO}x"]),
        ("hermes", {"has_many": False}, [OSLO], [f"{OSLO}\n{NO}"]),
        (
            "hermes",
            ANY,
            ["", "x <tool_cal", f"é\n{OSLO}", f"{OSLO}\n{NO}"],
            [f"{OSLO} x"],
        ),
        ("hermes", ANY, [OSLO], [OSLO.replace("Oslo", "Bonn"), "<tool_call>"]),
        ("hermes", JSON, ["[1]", OSLO], ["x", f"[1]{OSLO}"]),
        ("llama-3", {}, [LLAMA, f"{LLAMA}; {LLAMA}"], [OSLO, "x"]),
        ("llama-3", JSON, [LLAMA, "[1]"], ["{}"]),
        ("mistral", {}, [f"[{MISTRAL}]", f"[{MISTRAL}, {MISTRAL}]"], [MISTRAL, "[]"]),
    ],
)
def test_what_matches_are_calls_of_the_tools(
    tool_format: ToolFormat, options: Any, good: list[str], bad: list[str]
) -> None:
    grammar = tool_call_grammar([WEATHER, NOW], tool_format, **options)
    for text in good:
        assert matches(grammar, text), text
        if text in (OSLO, NO, LLAMA, f"[{MISTRAL}]"):
            parser = ToolCallParser(tool_format, [WEATHER, NOW])
            (call,) = [*parser.add(text), *parser.finish()]
            assert not isinstance(call, str)
            assert not call.error
            assert call.name in ("weather", 'n"w')
    for text in bad:
        assert not matches(grammar, text), text


def test_there_has_to_be_a_tool_and_a_format_that_has_a_grammar() -> None:
    with pytest.raises(ValueError, match="0 tools"):
        tool_call_grammar([])
    with pytest.raises(ValueError, match="'react'"):
        tool_call_grammar([NOW], "react")
    with pytest.raises(ValueError, match="cannot be told apart"):
        tool_call_grammar([NOW], "llama-3", is_required=False)
