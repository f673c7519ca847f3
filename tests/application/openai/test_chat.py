"""Chat completions with OpenAI's own client, over models that say what a test knows."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import openai
import pytest
import trio

from pie_trio.inference.fake import FakeEngine
from pie_trio.inference.scripted import ScriptedEngine

if TYPE_CHECKING:
    from tests.application.openai.conftest import Asking, OpenAsking

# OpenAI's client leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "", "parameters": PARAMETERS},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def scripted(*said: str) -> ScriptedEngine:
    """Return a model that says this to whatever it is asked."""
    return ScriptedEngine({"assistant:": list(said)})


async def stream_of(asking: Asking, **options: Any) -> list[Any]:
    async with await asking.chat(stream=True, **options) as stream:
        async with aclosing(aiter(stream)) as chunks:
            return [chunk async for chunk in chunks]


async def test_a_reply_and_what_it_took(open_asking: OpenAsking) -> None:
    async with open_asking(scripted(" hi there")) as asking:
        found = await asking.chat("hello", temperature=0)
    (choice,) = found.choices
    assert choice.message.content == " hi there"
    assert choice.message.role == "assistant"
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert found.object == "chat.completion"
    prompt = len("user: hello\nassistant:")
    assert found.usage.prompt_tokens == prompt
    assert found.usage.completion_tokens == len(" hi there")
    assert found.usage.total_tokens == prompt + len(" hi there")


async def test_a_stream_has_the_role_first_and_then_the_same_text(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(scripted(" hi there")) as asking:
        whole = await asking.chat(temperature=0)
        chunks = await stream_of(
            asking, temperature=0, stream_options={"include_usage": True}
        )
    assert len({chunk.id for chunk in chunks}) == 1
    *told, last = chunks
    assert told[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in told[1:])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in told)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in told]
    assert reasons == [*[None] * (len(told) - 1), "stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in told)


async def test_a_stream_without_options_tells_no_usage(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(scripted("x")) as asking:
        chunks = await stream_of(asking, temperature=0)
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


async def test_a_stop_string_ends_the_reply_before_it(open_asking: OpenAsking) -> None:
    async with open_asking(scripted("one two three")) as asking:
        found = await asking.chat(temperature=0, stop=["thr", " two"])
        assert found.choices[0].message.content == "one"
        assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_ends_the_reply(open_asking: OpenAsking, name: str) -> None:
    limit: dict[str, Any] = {name: 5}
    async with open_asking(scripted("one two three")) as asking:
        found = await asking.chat(temperature=0, **limit)
    assert found.choices[0].message.content == "one t"
    assert found.choices[0].finish_reason == "length"
    assert found.usage.completion_tokens == 5


async def test_choices_come_from_one_prompt(open_asking: OpenAsking) -> None:
    engine = FakeEngine(num_pages=512)
    async with open_asking(engine) as asking:
        long = "x" * 100
        found = await asking.chat(long, n=5, max_tokens=4, seed=3)
        assert [choice.index for choice in found.choices] == [0, 1, 2, 3, 4]
        assert len({choice.message.content for choice in found.choices}) > 1
        assert found.usage.completion_tokens == 20
        rows = [len(f.token_ids) for batch in engine.batches for f in batch.forwards]
    # The prompt once, and the last token of each choice but the one that ended it.
    assert sum(rows) <= found.usage.prompt_tokens + 5 * 4


async def test_a_seed_repeats_the_choices(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        texts = [
            [c.message.content for c in found.choices]
            for seed in (7, 7, 8)
            for found in [await asking.chat(n=2, max_tokens=8, seed=seed)]
        ]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0][0] != texts[0][1]


async def test_streamed_choices_are_those_of_the_whole(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        whole = await asking.chat(n=3, max_tokens=12, seed=1)
        chunks = await stream_of(asking, n=3, max_tokens=12, seed=1)
    texts = ["", "", ""]
    for chunk in chunks:
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


async def test_log_probabilities_are_of_the_tokens_of_the_text(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(scripted("hey")) as asking:
        found = await asking.chat(temperature=0, logprobs=True, top_logprobs=2)
        plain = await asking.chat(temperature=0, logprobs=True)
        chunks = await stream_of(asking, temperature=0, logprobs=True, top_logprobs=2)
    tokens = found.choices[0].logprobs.content
    assert b"".join(bytes(one.bytes) for one in tokens).decode() == "hey"
    for one in tokens:
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob, abs=1e-4)
        assert one.bytes == one.top_logprobs[0].bytes
        assert len(one.top_logprobs) == 2
        assert one.top_logprobs[0].logprob > one.top_logprobs[1].logprob
    assert [one.logprob for one in plain.choices[0].logprobs.content] == pytest.approx(
        [one.logprob for one in tokens], abs=1e-4
    )
    assert all(one.top_logprobs == [] for one in plain.choices[0].logprobs.content)
    streamed = [
        one
        for chunk in chunks
        if chunk.choices[0].logprobs
        for one in chunk.choices[0].logprobs.content
    ]
    assert streamed == tokens


async def test_a_bias_and_penalties_change_what_is_said(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(scripted("aaaa")) as asking:
        forced = await asking.chat(
            temperature=0, max_tokens=1, logit_bias={str(ord("Q")): 100}
        )
        assert forced.choices[0].message.content == "Q"
        banned = await asking.chat(
            temperature=0, max_tokens=1, logit_bias={str(ord("a")): -100}
        )
        assert banned.choices[0].message.content != "a"
    async with open_asking(ScriptedEngine({"assistant:": ["aaa", "aba"]})) as asking:
        for penalties, said in (
            ({}, "aaa"),
            ({"presence_penalty": 1}, "aba"),
            ({"frequency_penalty": 0.5}, "aba"),
            ({"frequency_penalty": -0.5}, "aaa"),
        ):
            found = await asking.chat(temperature=0, **penalties)
            assert found.choices[0].message.content == said


# ---- tools -------------------------------------------------------------------------------------


async def test_a_call_is_told_with_its_arguments(open_asking: OpenAsking) -> None:
    async with open_asking(scripted(f"One moment.\n{CALL}")) as asking:
        found = await asking.chat(temperature=0, tools=[WEATHER])
    (choice,) = found.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    assert call.id


async def test_calls_are_streamed_as_deltas(open_asking: OpenAsking) -> None:
    async with open_asking(scripted(f"{CALL}\n{CALL}")) as asking:
        chunks = await stream_of(asking, temperature=0, tools=[WEATHER])
    calls: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or []:
            if delta.id:
                assert delta.index not in calls
                assert delta.function.arguments == ""
                calls[delta.index] = {"name": delta.function.name, "arguments": ""}
            else:
                calls[delta.index]["arguments"] += delta.function.arguments
    assert [json.loads(calls[index]["arguments"]) for index in (0, 1)] == [
        {"city": "Oslo"}
    ] * 2
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert all(not chunk.choices[0].delta.content for chunk in chunks)


async def test_one_call_ends_the_turn_without_parallel_calls(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(scripted(f"{CALL}\n{CALL}")) as asking:
        found = await asking.chat(
            temperature=0, tools=[WEATHER], parallel_tool_calls=False
        )
    assert len(found.choices[0].message.tool_calls) == 1
    assert found.choices[0].finish_reason == "tool_calls"


async def test_a_call_that_is_no_json_is_shown_as_it_was_written(
    open_asking: OpenAsking,
) -> None:
    said = "Hm. <tool_call>\nweather of Oslo\n</tool_call>"
    async with open_asking(scripted(said)) as asking:
        found = await asking.chat(temperature=0, tools=[WEATHER])
    message = found.choices[0].message
    assert message.tool_calls is None
    assert message.content.split() == said.split()
    assert found.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_whoever_has_to_call_calls(open_asking: OpenAsking, choice: Any) -> None:
    async with open_asking() as asking:  # a model that would say anything but that
        found = await asking.chat(
            tools=[WEATHER],
            tool_choice=choice,
            parallel_tool_calls=False,
            seed=1,
            max_tokens=400,
        )
    (call,) = found.choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Oslo", "Rome")
    assert found.choices[0].finish_reason == "tool_calls"


async def test_a_strict_tool_is_called_with_nothing_else(
    open_asking: OpenAsking,
) -> None:
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    wrong = CALL.replace("Oslo", "Nowhere")
    async with open_asking(scripted(wrong)) as asking:
        free = await asking.chat(temperature=0, tools=[WEATHER])
        assert "Nowhere" in free.choices[0].message.tool_calls[0].function.arguments
        text = await asking.chat(temperature=0, tools=[WEATHER], tool_choice="none")
        assert text.choices[0].message.content == wrong
        # Where the model would leave the schema, it cannot, and this one knows no other way.
        with pytest.raises(openai.InternalServerError, match="EngineFailedError"):
            await asking.chat(temperature=0, tools=[strict])
    async with open_asking(scripted("Just a text with < and <tool>.")) as asking:
        found = await asking.chat(temperature=0, tools=[strict])
        assert found.choices[0].message.content == "Just a text with < and <tool>."


async def test_a_conversation_with_tools_reaches_the_template(
    open_asking: OpenAsking,
) -> None:
    call = {
        "id": "abc",
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
    }
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abc", "content": "rain"},
    ]
    parsed = {**call, "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    seen = (
        "system: Be brief.\nuser: Weather?\nassistant: \n"
        f"{json.dumps(parsed)}\ntool: rain\nassistant:"
    )
    async with open_asking(ScriptedEngine({seen: "It rains."})) as asking:
        found = await asking.chat(messages=messages, temperature=0)
    assert found.choices[0].message.content == "It rains."
    assert found.usage.prompt_tokens == len(seen)


# ---- JSON --------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "city": {"enum": ["Oslo", "Rome"]}},
    "required": ["ok", "city"],
    "additionalProperties": False,
}


async def test_json_always_fits_its_schema(open_asking: OpenAsking) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    async with open_asking() as asking:
        found = await asking.chat(n=8, seed=5, response_format=form, max_tokens=500)
    for choice in found.choices:
        value = json.loads(choice.message.content)
        assert type(value["ok"]) is bool
        assert value["city"] in ("Oslo", "Rome")
        assert choice.finish_reason == "stop"


async def test_json_or_a_call(open_asking: OpenAsking) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    async with open_asking() as asking:
        found = await asking.chat(
            n=8, seed=2, response_format=form, tools=[WEATHER], max_tokens=600
        )
    for choice in found.choices:
        if choice.message.tool_calls:
            arguments = choice.message.tool_calls[0].function.arguments
            assert json.loads(arguments)["city"] in ("Oslo", "Rome")
        else:
            assert set(json.loads(choice.message.content)) == {"ok", "city"}


# ---- what is shared ----------------------------------------------------------------------------


async def test_the_next_turn_computes_what_is_new_alone(
    open_asking: OpenAsking,
) -> None:
    engine = ScriptedEngine({"assistant:": " " + "word " * 40})
    first = [{"role": "user", "content": "Tell me something. " * 10}]
    async with open_asking(engine) as asking:
        reply = await asking.chat(messages=first, temperature=0)
        assert reply.usage.prompt_tokens_details.cached_tokens == 0
        said = reply.choices[0].message.content
        # The template puts a space where the model has put one.
        second = [
            *first,
            {"role": "assistant", "content": said.removeprefix(" ")},
            {"role": "user", "content": "And?"},
        ]
        before = len(engine.batches)
        answer = await asking.chat(messages=second, temperature=0, max_tokens=1)
        fresh = sum(
            len(forward.token_ids)
            for batch in engine.batches[before:]
            for forward in batch.forwards
        )
    size = engine.info.page_size
    known = reply.usage.prompt_tokens + reply.usage.completion_tokens
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert known - 2 * size < cached <= known
    assert fresh == answer.usage.prompt_tokens - cached


async def test_requests_at_the_same_time_share_batches(open_asking: OpenAsking) -> None:
    engine = FakeEngine(num_pages=512)
    async with open_asking(engine) as asking, trio.open_nursery() as nursery:
        for index in range(4):
            nursery.start_soon(_ask, asking, str(index))
    assert max(engine.batch_sizes) >= 3
    assert sum(size > 1 for size in engine.batch_sizes) >= 20


async def _ask(asking: Asking, text: str) -> None:
    await asking.chat(text, max_tokens=60, logit_bias={"257": -100})


async def test_a_client_that_leaves_ends_its_instance(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        stream = await asking.chat(
            stream=True, max_tokens=1900, logit_bias={"257": -100}
        )
        async with aclosing(aiter(stream)) as chunks:
            await anext(chunks)
            (running,) = asking.served.registry.list(owner=asking.served.owner)
            assert running.ended_clock is None
        await stream.close()
        with trio.fail_after(30):
            await running.wait_ended()
    assert running.state == "cancelled"
