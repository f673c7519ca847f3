"""What we answer is what OpenAI's description of its interface says, whatever is asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.application.openai.failures import OpenAIError, error_body
from pie_trio.application.openai.requests import (
    read_chat,
    read_completion,
    read_embeddings,
)
from pie_trio.application.openai.responses_request import read_response
from tests.application.openai.openapi import Description, read_description
from tests.application.openai.test_chat import CALL, SCHEMA, WEATHER, scripted
from tests.application.openai.test_responses import TOOL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.application.openai.conftest import Asking, OpenAsking

USER = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": "fake", "messages": USER}
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
RESPONSE: dict[str, Any] = {"model": "fake", "input": "hello"}
INCLUDED = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}


@pytest.fixture(scope="session")
def description(shared_directory: Path) -> Description:
    path = shared_directory / "data/openai_openapi/openapi.yaml"
    if not path.exists():
        pytest.skip("OpenAI's description of its interface is not in the shared folder")
    return read_description(path)


async def post(asking: Asking, path: str, body: Any) -> Any:
    return await asking.served.api.ask("POST", path, body)


@pytest.mark.parametrize(
    ("path", "body", "schema"),
    [
        ("chat/completions", CHAT | {"max_tokens": 3}, "ChatCompletion"),
        ("chat/completions", CHAT | {"max_tokens": 3, "n": 2} | LOGPROBS, ""),
        ("chat/completions", CHAT | {"response_format": FORM}, ""),
        (
            "chat/completions",
            CHAT | {"tools": [WEATHER], "tool_choice": "required"},
            "",
        ),
        ("completions", {"model": "fake", "prompt": "x", "logprobs": 2, "n": 2}, ""),
        ("responses", RESPONSE | {"max_output_tokens": 3}, ""),
        ("responses", RESPONSE | {"max_output_tokens": 3} | INCLUDED, ""),
        ("responses", RESPONSE | {"tools": [TOOL], "tool_choice": "required"}, ""),
        ("embeddings", {"model": "fake", "input": ["a", "b"]}, ""),
    ],
)
async def test_answers_fit(
    open_asking: OpenAsking, description: Description, path: str, body: Any, schema: str
) -> None:
    names = {
        "chat/completions": "CreateChatCompletionResponse",
        "completions": "CreateCompletionResponse",
        "responses": "Response",
        "embeddings": "CreateEmbeddingResponse",
    }
    async with open_asking() as asking:
        answer = await post(asking, f"/v1/{path}", body)
    assert answer.status == 200, answer.body
    description.check(names[path], answer.json)


async def test_models_fit(open_asking: OpenAsking, description: Description) -> None:
    async with open_asking() as asking:
        listed = await asking.served.api.get("/v1/models")
        one = await asking.served.api.get("/v1/models/fake")
        missing = await asking.served.api.get("/v1/models/x")
    description.check("ListModelsResponse", listed.json)
    description.check("Model", one.json)
    assert missing.status == 404
    description.check("ErrorResponse", missing.json)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 3} | LOGPROBS,
        {"tools": [WEATHER]},
        {"stream_options": {"include_usage": True}},
    ],
)
async def test_chunks_fit(
    open_asking: OpenAsking, description: Description, options: Any
) -> None:
    async with open_asking(scripted(f"Well.\n{CALL}")) as asking:
        body = CHAT | options | {"stream": True, "model": "scripted", "temperature": 0}
        answer = await post(asking, "/v1/chat/completions", body)
    *chunks, last = answer.body.decode().strip().split("\n\n")
    assert last == "data: [DONE]"
    for chunk in chunks:
        value = json.loads(chunk.removeprefix("data: "))
        description.check("CreateChatCompletionStreamResponse", value)


@pytest.mark.parametrize("options", [{}, {"tools": [TOOL]}, INCLUDED])
async def test_events_fit(
    open_asking: OpenAsking, description: Description, options: Any
) -> None:
    async with open_asking(scripted(f"Well.\n{CALL}")) as asking:
        body = RESPONSE | options | {"stream": True, "temperature": 0}
        answer = await post(asking, "/v1/responses", body | {"model": "scripted"})
    events = answer.body.decode().strip().split("\n\n")
    assert len(events) > 8
    for event in events:
        kind, _, data = event.partition("\n")
        value = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {value['type']}"
        description.check("ResponseStreamEvent", value)


async def test_errors_fit(open_asking: OpenAsking, description: Description) -> None:
    async with open_asking() as asking:
        for path in ("chat/completions", "completions", "responses", "embeddings"):
            for body in (b"{", b"[]", b"\xff", {}, {"model": 1}, {"model": "nobody"}):
                answer = await post(asking, f"/v1/{path}", body)
                assert answer.status in (400, 404), answer.body
                description.check("ErrorResponse", answer.json)
                assert answer.json["error"]["message"]
            answer = await asking.served.api.get(f"/v1/{path}")
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
            description.check("ErrorResponse", answer.json)


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 200)
    | st.floats(-3, 3)
    | st.sampled_from(["", "auto", "x", "function", "json_schema", "text", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "name", "function", "schema", "content", "role", "format"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
ROUTES: list[tuple[str, Callable[[object], object], dict[str, Any]]] = [
    ("CreateChatCompletionRequest", read_chat, CHAT),
    ("CreateCompletionRequest", read_completion, {"model": "m", "prompt": "x"}),
    ("CreateResponse", read_response, RESPONSE),
    ("CreateEmbeddingRequest", read_embeddings, {"model": "m", "input": "x"}),
]


@pytest.mark.parametrize(("schema", "read", "base"), ROUTES)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_parameter_is_the_request_is_read_or_refused_by_its_name(
    description: Description,
    schema: str,
    read: Callable[[object], Any],
    base: dict[str, Any],
    data: st.DataObject,
) -> None:
    names = st.sampled_from(description.properties(schema))
    changed = data.draw(st.dictionaries(names, JUNK, min_size=1, max_size=3))
    try:
        asked = read(base | changed)
    except OpenAIError as error:
        status, body = error_body(error)
        assert status == 400
        description.check("ErrorResponse", body)
        param = error.param or ""
        root = param.split(".")[0].split("[")[0]
        assert root in {*changed, *base}, (str(error), param)
    else:
        json.dumps(asked.arguments, allow_nan=False)


@pytest.mark.parametrize(("schema", "read", "base"), ROUTES)
def test_every_parameter_is_known(
    description: Description, schema: str, read: Callable[[object], Any], base: Any
) -> None:
    for name in description.properties(schema):
        try:
            read(base | {name: {"?": "?"}})
        except OpenAIError as error:
            # Those that are not supported are refused as that, not as misspelt.
            assert f"unknown parameter: {name!r}" not in str(error)
