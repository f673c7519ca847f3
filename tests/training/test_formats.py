"""What the model writes must parse as programs will parse it."""

import json
from random import Random

import pytest

from training.corpus import code, react, records, tool_calls
from training.corpus.tasks import Task, make_task
from training.corpus.toolbox import as_observation


def tasks() -> list[Task]:
    rng = Random(2)
    return [make_task(rng, is_real=True) for _ in range(100)]


def test_react_actions_parse_back_to_their_calls() -> None:
    for task in tasks():
        for call in (call for calls in task.rounds for call in calls):
            parsed = react.parse_action(react.render_action(call.name, call.arguments))
            assert parsed is not None
            name, arguments = parsed
            expected = {key: str(value) for key, value in call.arguments.items()}
            assert (name, arguments) == (call.name, expected)


def test_tool_calls_parse_back_to_their_calls() -> None:
    for task in tasks():
        for calls in task.rounds:
            text = "\n".join(tool_calls.render_call(c.name, c.arguments) for c in calls)
            expected = [(call.name, call.arguments) for call in calls]
            assert tool_calls.parse_calls(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n{]\n</tool_call>",
        "<tool_call>\n{}\n</tool_call>",
        "<tool_call>\n1\n</tool_call>",
        "<tool_call>\n",
    ],
)
def test_malformed_tool_calls_are_refused(text: str) -> None:
    assert tool_calls.parse_calls(text) is None


def test_malformed_actions_are_refused() -> None:
    for text in (
        "Action: weather Oslo\n",
        "Action: fly[Oslo]\n",
        "Action: convert[1]\n",
    ):
        assert react.parse_action(text) is None


def test_what_a_task_answers_stands_in_its_results() -> None:
    for task in tasks():
        if task.rounds:
            last = as_observation(task.rounds[-1][-1].result)
            assert last in task.answer or last == "not found"


def test_both_forms_of_a_schema_say_the_same() -> None:
    types = {"name": "string", "age": "integer", "foods": "strings"}
    for schema in (records.compact_schema(types), records.json_schema(types)):
        assert records.types_in(f"Write JSON.\nSchema: {schema}") == types


def test_a_record_must_have_the_types_of_its_schema() -> None:
    types = {"age": "integer", "open": "boolean"}
    assert records.matches(json.loads('{"age": 3, "open": true}'), types)
    assert not records.matches(json.loads('{"age": true, "open": true}'), types)
    assert not records.matches(json.loads('{"age": 3}'), types)
    assert not records.matches([], types)


def test_code_of_the_corpus_cannot_import() -> None:
    assert code.run("print(sum([1, 2]))") == "3"
    with pytest.raises(ImportError):
        code.run("import os")
