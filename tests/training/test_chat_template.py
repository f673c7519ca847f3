"""The shipped template must render what the corpus taught."""

import json
from collections.abc import Mapping
from random import Random
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from training.corpus import tool_calls
from training.corpus.documents import chat
from training.corpus.tasks import Task, make_task
from training.corpus.toolbox import TOOLS
from training.export import CHAT_TEMPLATE

Message = Mapping[str, Any]


def render(
    messages: list[Message],
    tools: list[Message] | None = None,
    *,
    is_prompt: bool = False,
) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    # As transformers defines it; Jinja's own sorts the keys and escapes for HTML.
    environment.filters["tojson"] = json.dumps
    template = environment.from_string(CHAT_TEMPLATE)
    return template.render(
        messages=messages, tools=tools, add_generation_prompt=is_prompt
    )


def test_a_chat_renders_as_in_the_corpus() -> None:
    pairs = (("system", "Be kind."), ("user", "Hi!"), ("assistant", "Hello!"))
    messages: list[Message] = [{"role": role, "content": text} for role, text in pairs]
    text = "".join(turn.prompt + turn.completion for turn in chat(*pairs))
    assert render(messages) == text + "\n"


def test_a_prompt_ends_where_the_assistant_begins() -> None:
    text = render([{"role": "user", "content": "Hi!"}], is_prompt=True)
    assert text == "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"


def test_parameters_without_a_type_are_of_any() -> None:
    parameters: list[dict[str, Any] | None] = [
        None,
        {"type": "object"},
        {"properties": {"a": {"$ref": "#/$defs/x"}, "b": True}},
        {"properties": {"a": {"type": ["string", "null"]}, "b": {"type": "integer"}}},
    ]
    tools: list[Mapping[str, Any]] = [
        {"name": f"t{index}", "description": "", "parameters": one}
        for index, one in enumerate(parameters)
    ]
    text = render([{"role": "user", "content": "Hi!"}], tools)
    lines = ["- t0(): ", "- t1(): ", "- t2(a: any, b: any): "]
    assert "\n".join([*lines, "- t3(a: any, b: integer): "]) in text


def openai_tools(task: Task) -> list[Message]:
    return [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": TOOLS[name].description,
                "parameters": {
                    "type": "object",
                    "properties": {
                        key: {"type": kind}
                        for key, kind in TOOLS[name].parameters.items()
                    },
                },
            },
        }
        for name in task.tools
    ]


def openai_messages(task: Task) -> list[Message]:
    messages: list[Message] = [{"role": "user", "content": task.question}]
    for calls in task.rounds:
        functions = [{"name": c.name, "arguments": c.arguments} for c in calls]
        made = [{"type": "function", "function": function} for function in functions]
        messages.append({"role": "assistant", "content": None, "tool_calls": made})
        messages += [
            {"role": "tool", "content": str(call.result).replace("'", '"')}
            for call in calls
        ]
    return messages


@pytest.mark.parametrize("seed", range(20))
def test_tools_and_their_calls_render_as_in_the_corpus(seed: int) -> None:
    task = make_task(Random(seed), is_real=True)
    document = tool_calls.to_document(task)
    prompt = document.text.removesuffix(document.turns[-1].completion)
    text = render(openai_messages(task), openai_tools(task), is_prompt=True)
    assert text == prompt
