"""What the routes share with all others: keys, clients that leave, a server that stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
import trio

from pie_trio.application.server.limits import ServerLimits
from pie_trio.inference.fake import FakeEngine
from tests.application.openai.test_published import deploy

if TYPE_CHECKING:
    from pie_trio.application.server.running import RunningInstance
    from tests.application.openai.conftest import Asking, OpenAsking

SILENT = """
@inferlet
async def main(messages: list[dict[str, Any]]) -> None:
    await sleep(3600)
"""


async def test_without_a_key_an_error_has_the_shape_that_clients_know(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(has_keys=True, key="wrong") as asking:
        with pytest.raises(openai.AuthenticationError, match="key is not known"):
            await asking.chat()
        with pytest.raises(openai.AuthenticationError):
            await asking.client.models.list()


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_before_the_first_word_ends_its_instance(
    open_asking: OpenAsking, is_streamed: bool
) -> None:
    async with open_asking() as asking:
        await deploy(asking, "silent", SILENT)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ask, asking, is_streamed)
            instance = await _first_instance(asking)
            nursery.cancel_scope.cancel()
        with trio.fail_after(30):
            await instance.wait_ended()
    assert instance.state == "cancelled"


async def _ask(asking: Asking, is_streamed: bool) -> None:
    await asking.chat(model="silent", stream=is_streamed)


async def _first_instance(asking: Asking) -> RunningInstance:
    while not (found := asking.served.registry.list(owner=asking.served.owner)):
        await trio.lowlevel.checkpoint()
    return found[0]


async def test_a_server_that_stops_says_so(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        await asking.chat(max_tokens=1)
        await asking.served.registry.drain(1)
        with pytest.raises(
            openai.InternalServerError, match="the server stops"
        ) as seen:
            await asking.chat(max_tokens=1)
    assert seen.value.status_code == 503


async def test_what_is_too_long_for_the_model_is_refused(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="2048 tokens") as caught:
                await asking.chat("x" * 3000, stream=stream)
            assert caught.value.code == "context_length_exceeded"
            assert caught.value.param == "messages"
        for name in ("max_tokens", "max_completion_tokens"):
            with pytest.raises(openai.BadRequestError, match="2040 for the") as caught:
                await asking.chat("hello", **{name: 2040})
            assert caught.value.param == name


async def test_a_response_is_refused_in_its_own_terms(open_asking: OpenAsking) -> None:
    bad = {"type": "json_schema", "name": "a", "schema": {"not": {}}}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("input", {"input": "x" * 3000}),
        ("max_output_tokens", {"max_output_tokens": 2040}),
        ("text.format", {"text": {"format": bad}}),
    ]
    async with open_asking() as asking:
        for param, options in cases:
            fields: Any = {"model": asking.engine.info.name, "input": "hi"} | options
            with pytest.raises(openai.BadRequestError) as caught:
                await asking.client.responses.create(**fields)
            assert caught.value.param == param


async def test_responses_are_not_kept(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        responses = asking.client.responses
        for ask in (responses.retrieve, responses.delete, responses.cancel):
            with pytest.raises(openai.NotFoundError, match="nothing is kept") as caught:
                await ask("resp_1")
            assert caught.value.param == "response_id"


async def test_a_schema_that_cannot_be_enforced_is_refused(
    open_asking: OpenAsking,
) -> None:
    schema = {"type": "object", "not": {"required": ["a"]}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    async with open_asking() as asking:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="not") as caught:
                await asking.chat(response_format=form, stream=stream)
            assert caught.value.param == "response_format"


async def test_a_model_without_a_template_refuses_chats(
    open_asking: OpenAsking,
) -> None:
    engine = FakeEngine()
    async with open_asking(engine) as asking:
        (model,) = asking.served.launcher.models.values()
        object.__setattr__(model.info.chat, "by_name", {})
        with pytest.raises(openai.BadRequestError, match="chat template") as caught:
            await asking.chat()
    assert caught.value.code == "unsupported_parameter"


async def test_a_bias_of_a_token_that_there_is_not_is_refused(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        with pytest.raises(openai.BadRequestError) as caught:
            await asking.chat(logit_bias={"999999": 1})
    assert caught.value.param == "logit_bias"


async def test_an_answer_that_is_too_large_is_refused(open_asking: OpenAsking) -> None:
    body = """
@inferlet
async def main(messages: list[Any]) -> None:
    for _ in range(20):
        await send("x" * 1000)
"""
    async with open_asking(limits=ServerLimits(max_answer_bytes=10_000)) as asking:
        await deploy(asking, "talks", body)
        with pytest.raises(openai.APIStatusError, match="10000 bytes") as caught:
            await asking.chat(model="talks")
    assert caught.value.status_code == 413
