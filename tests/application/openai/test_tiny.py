"""The routes over the model that comes with Pie, with OpenAI's own client."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.application.openai.conftest import OpenAsking

# OpenAI's client leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)

CONVERT: Any = {
    "type": "function",
    "function": {
        "name": "convert",
        "description": "change the unit of a value",
        "parameters": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "from": {"type": "string"},
                "to": {"type": "string"},
            },
            "required": ["value", "from", "to"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}


async def test_it_says_who_it_is(open_tiny: OpenAsking) -> None:
    async with open_tiny() as asking:
        whole = await asking.chat("Who are you?", temperature=0, logprobs=True)
        stream = await asking.chat("Who are you?", temperature=0, stream=True)
        async with stream, aclosing(aiter(stream)) as chunks:
            told = [chunk.choices[0].delta.content or "" async for chunk in chunks]
    (choice,) = whole.choices
    assert (
        choice.message.content
        == "".join(told)
        == "I am Pie, a very small language model."
    )
    tokens = choice.logprobs.content
    assert "".join(one.token for one in tokens) == choice.message.content
    assert len(tokens) == whole.usage.completion_tokens


async def test_it_calls_a_tool_and_uses_the_result(open_tiny: OpenAsking) -> None:
    messages: list[Any] = [{"role": "user", "content": "Convert 12 km to m."}]
    async with open_tiny() as asking:
        first = await asking.chat(messages=messages, tools=[CONVERT], temperature=0)
        (call,) = first.choices[0].message.tool_calls
        assert first.choices[0].finish_reason == "tool_calls"
        wanted = {"value": 12, "from": "km", "to": "m"}
        assert json.loads(call.function.arguments) == wanted
        messages.append(first.choices[0].message.model_dump(exclude_none=True))
        messages.append({"role": "tool", "tool_call_id": call.id, "content": "12000 m"})
        second = await asking.chat(messages=messages, tools=[CONVERT], temperature=0)
    assert "12000" in second.choices[0].message.content
    assert second.usage.prompt_tokens_details.cached_tokens > 0


async def test_json_always_fits_its_schema(open_tiny: OpenAsking) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
    async with open_tiny() as asking:
        found = await asking.chat(
            'Answer in JSON: {"name": ..., "age": ..., "pets": [...]}',
            response_format=form,
            n=8,
            seed=1,
            max_tokens=600,
        )
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        value = json.loads(choice.message.content)
        assert list(value) == ["name", "age", "pets"]
        assert 0 <= value["age"] <= 120


async def test_embeddings_of_like_texts_are_closer(open_tiny: OpenAsking) -> None:
    texts = ["The dog runs home.", "The dog runs away.", "12 * 7 = 84"]
    async with open_tiny() as asking:
        create: Any = asking.client.embeddings.create
        found = await create(model="pie-tiny", input=texts)
    first, second, third = (one.embedding for one in found.data)
    near = sum(a * b for a, b in zip(first, second, strict=True))
    far = sum(a * b for a, b in zip(first, third, strict=True))
    assert near > far
