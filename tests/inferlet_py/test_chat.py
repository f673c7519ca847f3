"""Chats: what the model runs on, and what becomes of calls; with a real model in
tests/application/run/test_chats.py.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlet_py import Chat, current_time, move_on_after, sleep, tool
from tests.inferlet_py.scripted_host import ScriptedHost, run

CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


@tool
def add(a: int, b: int) -> dict[str, int]:
    """Add two numbers."""
    return {"sum": a + b}


@tool
async def nap(seconds: float) -> str:
    """Sleep."""
    await sleep(seconds)
    return f"slept until {current_time():g}"


@tool
def fail() -> str:
    """Fail."""
    raise RuntimeError("no way")


def texts(host: ScriptedHost) -> list[str]:
    """Return what the model ran on at each turn."""
    return [host.show(tokens) for tokens in host.requests]


def test_a_turn_runs_on_what_is_new_alone() -> None:
    host = ScriptedHost("Hello!", "Bye.")

    async def program() -> list[str]:
        async with Chat("Be kind.") as chat:
            first = await chat.user("Hi").reply().text()
            second = await chat.user("Go").reply().text()
            assert chat.count_tokens() == len(
                host.tokenize("", host.prompts[1] + "Bye.<|im_end|>\n", False)
            ) + len(host.tokenize("", "<|im_start|>assistant\n", False))
            return [first, second]

    assert run(host, program) == ["Hello!", "Bye."]
    begin = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    assert texts(host)[0] == begin + "<|im_start|>assistant\n"
    more = "<|im_end|>\n<|im_start|>user\nGo<|im_end|>\n<|im_start|>assistant\n"
    assert texts(host)[1] == more
    assert host.prompts[1] == host.prompts[0] + "Hello!" + more


def test_a_template_that_forgets_lets_the_model_run_from_there() -> None:
    host = ScriptedHost("<think>hm</think>Hello!", "Bye.")

    async def program() -> None:
        with Chat(forget=True) as chat:
            await chat.user("Hi").reply().text()
            await chat.user("Go").reply().text()

    run(host, program)
    # The last token that stays is run again.
    assert texts(host)[1].startswith("\nHello!<|im_end|>\n<|im_start|>user\nGo")
    assert "hm" not in host.prompts[1]


def test_messages_may_be_changed_between_replies() -> None:
    host = ScriptedHost("one", "two", "three")

    async def program() -> None:
        async with Chat() as chat:
            await chat.user("abc").reply().text()
            chat.messages[0]["content"] = "abX"
            await chat.user("Go").reply().text()
            del chat.messages[1:]
            await chat.reply().text()

    run(host, program)
    assert texts(host)[1].startswith("bX<|im_end|>\n<|im_start|>assistant\none")
    assert host.prompts[2] == "<|im_start|>user\nabX<|im_end|>\n<|im_start|>assistant\n"


def test_a_reply_that_is_left_or_cancelled_leaves_the_messages_alone() -> None:
    host = ScriptedHost("a long reply", "another", "done")

    async def program() -> list[Any]:
        async with Chat() as chat:
            chat.user("Hi")
            async for _ in chat.reply():
                break
            with move_on_after(0):
                await chat.reply().text()
            assert len(chat.messages) == 1
            return [await chat.reply().text(), len(chat.messages)]

    text, count = run(host, program)
    assert (text, count) == ("done" if not host.replies else "another", 2)
    assert set(host.prompts) == {host.prompts[0]}


def test_a_fork_goes_on_by_itself() -> None:
    host = ScriptedHost("one", "two", "three")

    async def program() -> list[list[str]]:
        async with Chat() as chat:
            await chat.user("Hi").reply().text()
            with chat.fork() as other:
                await other.user("A").reply().text()
                await chat.user("B").reply().text()
                return [[m["content"] for m in one.messages] for one in (chat, other)]

    assert run(host, program) == [
        ["Hi", "one", "B", "three"],
        ["Hi", "one", "A", "two"],
    ]
    assert texts(host)[1].startswith("<|im_end|>"), "what came before is shared"


def test_a_tool_is_called_and_the_model_goes_on_with_its_result() -> None:
    host = ScriptedHost(f"Let me see. {CALL}", "It is 3.")

    async def program() -> list[Any]:
        async with Chat(tools=[add]) as chat:
            reply = chat.user("1 + 2?").reply()
            pieces = [piece async for piece in reply]
            return [pieces, reply.results, reply.finish_reason, chat.messages]

    pieces, results, reason, messages = run(host, program)
    assert "".join(pieces) == "Let me see.It is 3."
    assert (results[0].text, results[0].error, reason) == ('{"sum": 3}', None, "stop")
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1, "b": 2}
    assert json.loads(host.chats[0].tools)[0]["function"]["name"] == "add"
    assert '<|im_start|>tool\n{"sum": 3}<|im_end|>' in host.prompts[1]


def test_calls_of_one_turn_run_at_the_same_time() -> None:
    calls = [
        f'<tool_call>{{"name": "nap", "arguments": {{"seconds": {n}}}}}</tool_call>'
        for n in (3, 1, 2)
    ]
    host = ScriptedHost("\n".join(calls), "Rested.")

    async def program() -> list[Any]:
        async with Chat(tools=[nap]) as chat:
            reply = chat.user("Sleep").reply()
            await reply.text()
            return [[result.text for result in reply.results], current_time()]

    slept, end = run(host, program)
    assert slept == ["slept until 3", "slept until 1", "slept until 2"]
    assert end == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ('{"name": "fail", "arguments": {}}', "no way"),
        ('{"name": "add", "arguments": {"a": 1}}', "argument 'b' is missing"),
        ('{"name": "add", "arguments": {"a": 1, "b": "x"}}', "expected int"),
        (
            '{"name": "none", "arguments": {}}',
            "there is no tool 'none': there is add, fail",
        ),
        ('{"name": "add", ', "the call is no JSON"),
    ],
)
def test_the_model_is_told_what_went_wrong(call: str, message: str) -> None:
    host = ScriptedHost(f"<tool_call>{call}</tool_call>", "Sorry.")

    async def program() -> list[Any]:
        async with Chat(tools=[add, fail]) as chat:
            reply = chat.user("Try").reply()
            return [await reply.text(), reply.results[0], chat.messages]

    text, result, messages = run(host, program)
    assert text == "Sorry."
    assert result.error is not None
    assert message in json.loads(result.text)["error"]
    assert messages[2] == {
        "role": "tool",
        "name": result.call.name,
        "content": result.text,
    }


def test_rounds_have_an_end() -> None:
    host = ScriptedHost(CALL, CALL, CALL)

    async def program() -> list[Any]:
        async with Chat(tools=[add]) as chat:
            reply = chat.user("Try").reply(max_rounds=2)
            await reply.text()
            return [reply.finish_reason, len(reply.results), reply.calls]

    reason, count, calls = run(host, program)
    assert (reason, count, calls[0].name) == ("rounds", 1, "add")
    assert len(host.replies) == 1


def test_a_turn_that_is_too_long_says_so() -> None:
    host = ScriptedHost("a long reply", "short")

    async def program() -> list[Any]:
        async with Chat() as chat:
            reply = chat.user("Hi").reply(max_tokens=4)
            return [
                await reply.text(),
                reply.finish_reason,
                await chat.user("?").reply().text(),
            ]

    assert run(host, program) == ["a lo", "length", "short"]
    assert host.prompts[1].startswith(host.prompts[0] + "a lo<|im_end|>\n")


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["user", "reply", "short", "stop", "left", "edit", "drop", "fork", "meddle"]
        ),
        st.text(alphabet="ab\u00e9 \n", max_size=5),
    ),
    max_size=12,
)


@pytest.mark.parametrize("variables", [{}, {"forget": True}])
@given(steps=STEPS)
def test_whatever_happened_the_model_replies_to_the_whole_prompt(
    variables: dict[str, Any], steps: list[tuple[str, str]]
) -> None:
    host = ScriptedHost()
    expected: list[str] = []

    async def program() -> None:
        chat = Chat("begin", **variables)
        for action, text in steps:
            if action == "user":
                chat.user(text)
            elif action == "edit":
                chat.messages[len(text) % len(chat.messages)]["content"] = text
            elif action == "drop":
                del chat.messages[1 + len(text) :]
            elif action == "fork":
                chat = chat.fork()
            elif action == "meddle":
                chat.context.append(host.tokenize("", text, False))
            else:
                host.replies.append(f"{text}</think>b")
                expected.append(chat.prompt())
                limit = 2 if action == "short" else 99
                stop = "/think" if action == "stop" else ()
                async for _ in chat.reply(max_tokens=limit, stop=stop):
                    if action == "left":
                        break

    run(host, program)
    assert host.tokens == [host.tokenize("", text, False) for text in expected]
