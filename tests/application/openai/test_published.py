"""Programs as models: what is published, what takes the place of ours, and what they may do."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import openai
import pytest

from tests.application.openai.test_chat import WEATHER

if TYPE_CHECKING:
    from tests.application.openai.conftest import Asking, OpenAsking

# OpenAI's client leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)

HEADER = """\
# /// pie
# publish = ["chat"]
# ///
import json
from typing import Any
from inferlet_py import *

"""
SHOUT = """
@inferlet
async def main(messages: list[dict[str, Any]]) -> None:
    for word in messages[-1]["content"].split():
        await send(word.upper() + " ")
"""
RETURNS = """
@inferlet
async def main(messages: list[dict[str, Any]]) -> str:
    return messages[0]["content"][::-1]
"""
EVENTS = """
@inferlet
async def main(messages: list[dict[str, Any]], n: int = 1, tools: list[Any] = []) -> None:
    async def tell(**event):
        await send(json.dumps(event).encode())
    await tell(choice=1, text="second")
    await tell(choice=0, call={"name": "weather", "arguments": {"city": "Rome"}})
    await tell(choice=1, finish="length")
    await tell(usage={"prompt_tokens": 5, "completion_tokens": 7})
"""
FAILS = """
@inferlet
async def main(messages: list[dict[str, Any]]) -> None:
    await send("so far so good")
    raise KeyError("lost")
"""


async def deploy(asking: Asking, name: str, text: str, header: str = HEADER) -> None:
    path, body = f"/v1/programs/{name}", (header + text).encode()
    answer = await asking.served.api.ask("PUT", path, body)
    assert answer.status in (200, 201), answer.body


async def test_a_published_program_is_a_model(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        await deploy(asking, "shout", SHOUT)
        await deploy(asking, "quiet", SHOUT, HEADER.replace('"chat"', ""))
        names = [model.id async for model in asking.client.models.list()]
        assert names == ["fake", "shout"]
        assert (await asking.client.models.retrieve("shout")).owned_by == "local"
        found = await asking.chat("hello you", model="shout")
        assert found.choices[0].message.content == "HELLO YOU "
        assert found.model == "shout"
        assert found.choices[0].finish_reason == "stop"
        stream = await asking.chat("hello you", model="shout", stream=True)
        async with stream, aclosing(aiter(stream)) as chunks:
            told = [chunk.choices[0].delta.content async for chunk in chunks]
        assert "".join(text or "" for text in told) == "HELLO YOU "
        create: Any = asking.client.responses.create
        response = await create(model="shout", input="a b")
        assert response.output_text == "A B "


async def test_what_a_program_returns_is_its_reply(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        await deploy(asking, "reverse", RETURNS)
        found = await asking.chat("abc", model="reverse")
    assert found.choices[0].message.content == "cba"


async def test_events_have_choices_calls_reasons_and_usage(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        await deploy(asking, "agent", EVENTS)
        found = await asking.chat(model="agent", n=2, tools=[WEATHER])
    first, second = found.choices
    assert first.message.tool_calls[0].function.name == "weather"
    assert json.loads(first.message.tool_calls[0].function.arguments) == {
        "city": "Rome"
    }
    assert (first.finish_reason, second.finish_reason) == ("tool_calls", "length")
    assert second.message.content == "second"
    assert found.usage.prompt_tokens == 5
    assert found.usage.completion_tokens == 7


async def test_what_a_program_cannot_do_is_refused_by_name(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        await deploy(asking, "shout", SHOUT)
        await asking.chat(model="shout", temperature=1, n=1)  # go without saying
        for options, param in (
            ({"temperature": 0.5}, "temperature"),
            ({"max_completion_tokens": 5}, "max_completion_tokens"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"n": 2}, "n"),
        ):
            with pytest.raises(openai.BadRequestError, match="shout") as caught:
                await asking.chat(model="shout", **options)
            assert caught.value.param == param
            assert caught.value.code == "unsupported_parameter"


async def test_models_that_are_not_there(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        await deploy(asking, "quiet", SHOUT, HEADER.replace('"chat"', '"completions"'))
        for name, said in (("nobody", "the server has fake, quiet"), ("quiet", "chat")):
            with pytest.raises(openai.NotFoundError, match=said) as caught:
                await asking.chat(model=name)
            assert caught.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="no parameter 'prompt'"):
            await asking.client.completions.create(model="quiet", prompt="x")
        with pytest.raises(openai.NotFoundError, match="there is no model 'nobody'"):
            await asking.client.models.retrieve("nobody")


async def test_a_program_that_fails_is_an_error_also_within_a_stream(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        await deploy(asking, "fails", FAILS)
        with pytest.raises(openai.InternalServerError, match="KeyError: 'lost'"):
            await asking.chat(model="fails")
        stream = await asking.chat(model="fails", stream=True)
        told = list[str]()
        with pytest.raises(openai.APIError, match="KeyError: 'lost'"):
            await read_into(told, stream)
        assert "".join(told) == "so far so good"


async def read_into(told: list[str], stream: Any) -> None:
    async with stream, aclosing(aiter(stream)) as chunks:
        async for chunk in chunks:
            told += [chunk.choices[0].delta.content or ""]


@pytest.mark.parametrize(
    "sent", ["b'no json'", "b'[]'", "b'{\"choice\": 1}'", 'b\'{"texts": "x"}\'']
)
async def test_bytes_that_are_no_event_are_the_programs_fault(
    open_asking: OpenAsking, sent: str
) -> None:
    body = f"\n@inferlet\nasync def main(messages: list[Any]) -> None:\n    await send({sent})\n"
    async with open_asking() as asking:
        await deploy(asking, "wrong", body)
        with pytest.raises(openai.InternalServerError, match="no event of a model"):
            await asking.chat(model="wrong")


async def test_a_program_of_ones_own_takes_the_place_of_ours(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        await deploy(asking, "openai_chat", SHOUT, HEADER.split("# ///\n")[-1])
        found = await asking.chat("hello")
        assert found.choices[0].message.content == "HELLO "
        answer = await asking.served.api.ask("DELETE", "/v1/programs/openai_chat")
        assert answer.status == 200
        found = await asking.chat("hello", max_tokens=1)
        assert found.choices[0].message.content != "HELLO "


async def test_a_receiving_program_hears_that_nothing_comes(
    open_asking: OpenAsking,
) -> None:
    body = "\n@inferlet\nasync def main(messages: list[Any]) -> str:\n    return str(await receive())\n"
    async with open_asking() as asking:
        await deploy(asking, "waits", body)
        found = await asking.chat(model="waits")
    assert found.choices[0].message.content == "None"


async def test_an_unknown_place_to_publish_is_refused(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        text = (HEADER.replace('"chat"', '"chats"') + SHOUT).encode()
        answer = await asking.served.api.ask("PUT", "/v1/programs/x", text)
    assert answer.status == 422
    assert "chat, completions, embeddings" in answer.error["message"]
