"""Responses with OpenAI's own client."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.inference.scripted import ScriptedEngine
from tests.application.openai.test_chat import CALL, PARAMETERS, SCHEMA, scripted

if TYPE_CHECKING:
    from tests.application.openai.conftest import Asking, OpenAsking

# OpenAI's client leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)

TOOL: Any = {"type": "function", "name": "weather", "parameters": PARAMETERS}


async def respond(asking: Asking, given: Any, **options: Any) -> Any:
    create: Any = asking.client.responses.create
    return await create(model=asking.engine.info.name, input=given, **options)


async def events_of(asking: Asking, given: Any, **options: Any) -> list[Any]:
    stream = await respond(asking, given, stream=True, **options)
    async with stream, aclosing(aiter(stream)) as events:
        return [event async for event in events]


async def test_a_text_is_answered(open_asking: OpenAsking) -> None:
    engine = ScriptedEngine({"system: Be brief.\nuser: hi\nassistant:": "Yes."})
    async with open_asking(engine) as asking:
        found = await respond(asking, "hi", instructions="Be brief.", temperature=0)
    assert found.output_text == "Yes."
    assert found.status == "completed"
    assert found.instructions == "Be brief."
    assert found.usage.output_tokens == 4
    assert found.usage.total_tokens == found.usage.input_tokens + 4


async def test_what_is_cut_is_incomplete(open_asking: OpenAsking) -> None:
    async with open_asking(scripted("one two three")) as asking:
        found = await respond(asking, "hi", max_output_tokens=5, temperature=0)
    assert found.status == "incomplete"
    assert found.incomplete_details.reason == "max_output_tokens"
    assert found.output_text == "one t"


async def test_the_format_of_the_text_is_told_whatever_came(
    open_asking: OpenAsking,
) -> None:
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "boolean"}}
    async with open_asking() as asking:
        for text, kind in (
            ({"verbosity": "medium"}, "text"),
            ({"format": None}, "text"),
            ({"format": schema}, "json_schema"),
        ):
            found = await respond(asking, "hi", text=text, max_output_tokens=16)
            assert found.text.format.type == kind


async def test_events_tell_the_response_in_order(open_asking: OpenAsking) -> None:
    said = f"Let me see.\n{CALL}"
    async with open_asking(scripted(said)) as asking:
        events = await events_of(asking, "hi", tools=[TOOL], temperature=0)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *["output_text.delta"] * deltas,
        *("output_text.done", "content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta"),
        *("function_call_arguments.done", "output_item.done", "completed"),
    ]
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == "Let me see."
    message, call = events[-1].response.output
    assert message.content[0].text == text
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments) == {"city": "Oslo"}


async def test_the_output_can_be_the_input_of_the_next_turn(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(scripted(CALL)) as asking:
        first = await respond(asking, "Weather?", tools=[TOOL], temperature=0)
        (call,) = first.output
        assert call.call_id
    engine = ScriptedEngine({"tool: rain\nassistant:": "It rains."})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    given = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        call.model_dump(exclude_none=True),
        result,
    ]
    async with open_asking(engine) as asking:
        second = await respond(asking, given, temperature=0)
    assert second.output_text == "It rains."


async def test_json_and_log_probabilities(open_asking: OpenAsking) -> None:
    form = {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}
    async with open_asking() as asking:
        found = await respond(
            asking,
            "hi",
            text=form,
            max_output_tokens=600,
            include=["message.output_text.logprobs"],
            top_logprobs=1,
        )
    assert set(json.loads(found.output_text)) == {"ok", "city"}
    (part,) = found.output[0].content
    assert "".join(one.token for one in part.logprobs) == found.output_text
    assert all(len(one.top_logprobs) == 1 for one in part.logprobs)
