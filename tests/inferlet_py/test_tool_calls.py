"""Calls of tools in a text: whole, in pieces, broken, and several."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferlet_py import ToolCall, ToolCallParser, tool
from inferlet_py._tool_calls import ToolFormat, guess_tool_format

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMATS: tuple[ToolFormat, ...] = get_args(ToolFormat)

ARGUMENTS = st.dictionaries(
    st.text(max_size=4),
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    max_size=3,
)
CALLS = st.lists(
    st.tuples(st.from_regex(r"\A[a-z]\w{0,6}\Z"), ARGUMENTS), min_size=1, max_size=3
)
# Words of all formats, so that nearly every beginning of a call occurs.
NOISE = st.lists(
    st.sampled_from(
        [
            *(
                "<tool_call>",
                "</tool_call>",
                "<tool",
                "{",
                "}",
                '"',
                "[",
                "]",
                "\n",
                " ",
            ),
            *(
                "x",
                ";",
                "[TOOL_CALLS]",
                "[ARGS]",
                "[TOOL",
                ",",
                "Action: ",
                "f[a]",
                ": ",
            ),
            *(
                '{"name": "f", "arguments": {"a": 1}}',
                '{"name": "f", "parameters": {}}',
            ),
            *("<|python_tag|>", '"name"', "{}"),
        ]
    ),
    max_size=10,
).map("".join)


@tool
def convert(value: float, from_: str, to: str) -> float:
    """Change the unit of a value."""
    raise NotImplementedError


def parse(
    pieces: Iterable[str], tool_format: ToolFormat
) -> tuple[str, list[ToolCall], list[str | ToolCall]]:
    """Return text, calls, and both in order, neighbouring texts as one."""
    parser = ToolCallParser(tool_format, [convert])
    items = [item for piece in pieces for item in parser.add(piece)] + parser.finish()
    joined: list[str | ToolCall] = []
    for item in items:
        if isinstance(item, str) and joined and isinstance(joined[-1], str):
            joined[-1] += item
        else:
            joined.append(item)
    text = "".join(item for item in joined if isinstance(item, str))
    return text, [item for item in joined if isinstance(item, ToolCall)], joined


def write(calls: list[tuple[str, dict[str, Any]]], tool_format: ToolFormat) -> str:
    """Write calls as a model does."""
    if tool_format == "hermes":
        return "\n".join(
            f"<tool_call>\n{json.dumps({'name': name, 'arguments': a})}\n</tool_call>"
            for name, a in calls
        )
    if tool_format == "mistral":
        listed = [
            {"name": name, "arguments": a, "id": "abcdefghi"} for name, a in calls
        ]
        return f"[TOOL_CALLS] {json.dumps(listed)}"
    return "; ".join(json.dumps({"name": name, "parameters": a}) for name, a in calls)


@pytest.mark.parametrize("tool_format", ["hermes", "llama-3", "mistral"])
@given(calls=CALLS)
@example(calls=[("f", {"a": "</tool_call>", "b": "}]{"}), ("g", {})])
def test_calls_are_found_with_their_arguments(
    tool_format: ToolFormat, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    text, found, _ = parse(list(write(calls, tool_format)), tool_format)
    assert text == ""
    assert [(call.name, call.arguments) for call in found] == calls
    assert not any(call.error for call in found)


@pytest.mark.parametrize("tool_format", FORMATS)
@given(text=NOISE)
def test_the_pieces_make_no_difference(tool_format: ToolFormat, text: str) -> None:
    assert parse(list(text), tool_format) == parse([text], tool_format)


@pytest.mark.parametrize("tool_format", FORMATS)
@given(text=st.text(alphabet='abA<[{:} \n"', max_size=30) | NOISE)
def test_a_text_without_calls_comes_out_as_it_went_in(
    tool_format: ToolFormat, text: str
) -> None:
    shown, calls, _ = parse([text], tool_format)
    if not calls:
        tags = {"hermes": "</tool_call>", "mistral": "[TOOL_CALLS]"}
        assert shown == text or tags.get(tool_format, "?") in text


def test_text_stays_around_calls_without_the_space_between() -> None:
    text = 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\nDone \n'
    _, _, items = parse(list(text), "hermes")
    assert items == ["Let me see.", ToolCall("f", {}), "Done \n"]


def test_a_call_is_there_as_soon_as_its_object_is_complete() -> None:
    parser = ToolCallParser()
    assert parser.add('<tool_call>{"name": "f", "arguments": {"a": "}"}') == []
    assert parser.add("}") == [ToolCall("f", {"a": "}"})]
    assert parser.add("</tool_call>") + parser.finish() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<tool_call>{"name": f}</tool_call>', "expected a value at character 9"),
        ('<tool_call>{"name": "f", "argu', "it was cut short"),
        ("<tool_call>", "there is nothing in it"),
        ('<tool_call>{"name": "f", "arguments": 1}</tool_call>', "a call should be"),
        ("<tool_call>{}</tool_call>", "a call should be"),
    ],
)
def test_a_broken_call_says_what_is_wrong(text: str, message: str) -> None:
    shown, calls, _ = parse(list(text), "hermes")
    assert shown == ""
    assert message in calls[0].error


def test_after_a_broken_call_others_are_read() -> None:
    text = "<tool_call>{x}</tool_call>\n" + write([("f", {"a": 1})], "hermes")
    _, calls, _ = parse(list(text), "hermes")
    assert [bool(call.error) for call in calls] == [True, False]
    text = "[TOOL_CALLS] [{x}] [TOOL_CALLS]" + json.dumps(
        [{"name": "f", "arguments": {}}]
    )
    _, calls, _ = parse(list(text), "mistral")
    assert [bool(call.error) for call in calls] == [True, False]


def test_arguments_may_be_json_in_a_string() -> None:
    text = (
        write([], "hermes")
        + '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>'
    )
    assert parse([text], "hermes")[1] == [ToolCall("f", {"a": 1})]


def test_json_that_is_no_call_is_an_answer() -> None:
    for text in ('{"a": 1}', ' {"name": "Anna"}\n', '{"a": '):
        assert parse(list(text), "llama-3")[0] == text
    for text in ('[{"a": 1}]', "[1, 2]", "[", " [ "):
        assert parse(list(text), "mistral")[0] == text


def test_formats_have_variants() -> None:
    call = '{"name": "f", "parameters": {"a": 1}}'
    assert parse([f"<|python_tag|>{call}"], "llama-3")[1] == [ToolCall("f", {"a": 1})]
    listed = '[{"name": "f", "arguments": {"a": 1}}]'
    # The marker is a special token: where tokens are shown as text it is gone.
    assert parse([listed], "mistral")[:2] == ("", [ToolCall("f", {"a": 1})])
    for text in ('[TOOL_CALLS]f[ARGS]{"a": 1}', 'Hm. [TOOL_CALLS]f{"a": 1}'):
        assert parse(list(text), "mistral")[1] == [ToolCall("f", {"a": 1})]


def test_an_action_gets_the_names_of_its_arguments_from_the_tool() -> None:
    text = (
        "Thought: I need it.\nAction: convert[12, km, m]\nAction: weather[Oslo]\n"
        "Action: convert[12]\n"
    )
    shown, calls, _ = parse(list(text), "react")
    assert shown == "Thought: I need it."
    assert calls[0] == ToolCall("convert", {"value": 12, "from": "km", "to": "m"})
    assert calls[1] == ToolCall("weather", {"input": "Oslo"})
    assert calls[2].error == "convert takes value, from, to"


def test_the_format_is_told_by_the_template() -> None:
    assert guess_tool_format("... <tool_call> ...") == "hermes"
    assert guess_tool_format("... [TOOL_CALLS] ...") == "mistral"
    assert guess_tool_format("<|start_header_id|>") == "llama-3"
    assert guess_tool_format("") == "hermes"


def test_an_unknown_format_is_refused() -> None:
    name: Any = "xml"
    with pytest.raises(ValueError, match="one of hermes, llama-3, mistral, react"):
        ToolCallParser(name)
