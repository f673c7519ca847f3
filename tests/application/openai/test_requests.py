"""What is wrong with a request is said by the name of its parameter, before anything runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.application.openai.failures import OpenAIError, error_body
from pie_trio.application.openai.requests import (
    read_chat,
    read_completion,
    read_embeddings,
)
from pie_trio.application.openai.responses_request import read_response
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}


def chat(**changes: Any) -> Any:
    return read_chat({"model": "m", "messages": [USER]} | changes)


def text(**changes: Any) -> Any:
    return read_completion({"model": "m", "prompt": "x"} | changes)


def respond(**changes: Any) -> Any:
    return read_response({"model": "m", "input": "x"} | changes)


def embed(**changes: Any) -> Any:
    return read_embeddings({"model": "m", "input": "x"} | changes)


@pytest.mark.parametrize(
    ("ask", "changes", "param", "said"),
    [
        (chat, {"model": None}, "model", "you must provide 'model'"),
        (chat, {"messages": None}, "messages", "you must provide 'messages'"),
        (chat, {"messages": []}, "messages", "at least one message"),
        (chat, {"messages": [1]}, "messages[0]", "expected an object, got 1"),
        (chat, {"messages": [{"role": "cat"}]}, "messages[0].role", "'developer'"),
        (chat, {"messages": [{"role": "user"}]}, "messages[0].content", "must provide"),
        (chat, {"temperature": 3}, "temperature", "expected 0 to 2, got 3"),
        (chat, {"temperature": "hot"}, "temperature", 'a number, got "hot"'),
        (chat, {"temperature": float("nan")}, "temperature", "0 to 2"),
        (chat, {"n": 0}, "n", "1 to 128, got 0"),
        (chat, {"n": True}, "n", "an integer, got true"),
        (chat, {"stop": ["a"] * 5}, "stop", "at most 4"),
        (chat, {"stop": ["a", 1]}, "stop[1]", "a string, got 1"),
        (chat, {"stop": ""}, "stop[0]", "not empty"),
        (chat, {"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        (chat, {"logit_bias": {"5": 101}}, "logit_bias.5", "-100 to 100"),
        (chat, {"top_logprobs": 2}, "top_logprobs", "needs 'logprobs'"),
        (chat, {"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens", "the same"),
        (chat, {"max_tokens": 0}, "max_tokens", "at least 1, got 0"),
        (chat, {"stream_options": {}}, "stream_options", "needs 'stream'"),
        (chat, {"store": True}, "store", "nothing is kept"),
        (chat, {"modalities": ["audio"]}, "modalities", "texts"),
        (chat, {"functions": [{"name": "f"}]}, "functions", "use 'tools'"),
        (chat, {"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
        (chat, {"top_k": 5}, "top_k", "unknown parameter: 'top_k'"),
        (chat, {"tools": [{"type": "custom"}]}, "tools[0].type", "functions"),
        (chat, {"tools": [TOOL, TOOL]}, "tools[1]", "names that differ"),
        (chat, {"tool_choice": "required"}, "tool_choice", "'tools' where one"),
        (chat, {"tool_choice": "maybe"}, "tool_choice", "auto, none, required"),
        (
            chat,
            {
                "tools": [TOOL],
                "tool_choice": {"type": "function", "function": {"name": "g"}},
            },
            "tool_choice",
            "among 'tools'",
        ),
        (chat, {"response_format": {"type": "xml"}}, "response_format.type", "'text'"),
        (
            chat,
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
            "an object",
        ),
        (
            chat,
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
            "'image_url' is no text",
        ),
        (
            chat,
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "a", "function": {"name": "f", "arguments": "[1"}}
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "a JSON object as text",
        ),
        (text, {"prompt": []}, "prompt", "not empty"),
        (text, {"prompt": ["a", 1]}, "prompt[1]", "arrays of tokens"),
        (text, {"prompt": [[]]}, "prompt[0]", "arrays of tokens"),
        (text, {"prompt": ["a"] * 20, "n": 128}, "prompt", "at most 2048 choices"),
        (text, {"suffix": "x"}, "suffix", "only goes on"),
        (text, {"best_of": 3}, "best_of", "no others"),
        (text, {"echo": True, "logprobs": 1}, "echo", "have no 'logprobs'"),
        (text, {"logprobs": 6}, "logprobs", "0 to 5"),
        (respond, {"input": None}, "input", "must provide"),
        (respond, {"input": [{"type": "reasoning"}]}, "input[0].type", "an item is"),
        (respond, {"previous_response_id": "x"}, "previous_response_id", "is kept"),
        (respond, {"truncation": "auto"}, "truncation", "too long"),
        (respond, {"include": ["x"]}, "include[0]", "only"),
        (respond, {"text": {"format": {}}}, "text.format.type", "must provide"),
        (embed, {"encoding_format": "hex"}, "encoding_format", "'base64'"),
        (embed, {"dimensions": 0}, "dimensions", "at least 1"),
        (embed, {"pooling": "max"}, "pooling", "'mean', 'last'"),
    ],
)
def test_an_error_names_its_parameter(
    ask: Callable[..., Any], changes: Any, param: str, said: str
) -> None:
    with pytest.raises(OpenAIError) as caught:
        ask(**changes)
    status, body = error_body(caught.value)
    assert status == 400
    assert body["error"]["param"] == param
    assert body["error"]["type"] == "invalid_request_error"
    assert said in body["error"]["message"]


def test_what_goes_without_saying_is_no_argument() -> None:
    asked = chat(
        temperature=1,
        top_p=1.0,
        n=1,
        stop=None,
        logprobs=False,
        presence_penalty=0,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        user="me",
        metadata={"a": "b"},
        stream=False,
    )
    assert asked.arguments == {"messages": [USER]}


def test_arguments_are_told_from_their_parameters() -> None:
    asked = chat(max_completion_tokens=3.0, response_format=SCHEMA, stop="x", seed=-1)
    assert asked.arguments == {
        "messages": [USER],
        "max_tokens": 3,
        "json_schema": {},
        "stop": ["x"],
        "seed": -1,
    }
    assert asked.origin("max_tokens") == "max_completion_tokens"
    assert asked.origin("json_schema") == "response_format"


def test_only_tools_that_are_allowed_are_told() -> None:
    tools = [TOOL, {"type": "function", "function": {"name": "g"}}]
    only = {"type": "function", "function": {"name": "g"}}
    allowed = {"mode": "required", "tools": [only]}
    asked = chat(
        tools=tools,
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
    )
    assert [one["function"]["name"] for one in asked.arguments["tools"]] == ["g"]
    assert asked.arguments["tool_choice"] == "required"


def test_other_errors_have_the_same_shape() -> None:
    status, body = error_body(LimitError("too many"))
    assert status == 429
    assert body["error"]["type"] == "rate_limit_error"
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == "limit_exceeded"


def test_a_body_that_is_no_object_is_the_fault_of_no_parameter() -> None:
    with pytest.raises(OpenAIError, match="the body: expected an object") as caught:
        read_chat([])
    assert caught.value.param is None
