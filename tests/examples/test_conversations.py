"""Conversations: what they remember, and what is computed again for it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import pytest

from examples.session.app import TURN

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.authoring.testing.pie import Pie
    from tests.examples.running import Examples

Mode = Literal["wasm", "native"]

SAY = ["My name is Ivan.", "What is the capital of Italy?", "What is my name?"]
REPLIES = [
    "Thank you, I will remember that.",
    "The capital of Italy is Rome.",
    "Your name is Ivan.",
]

UNPARKED = f"""
from inferlet_py import Context, inferlet, send

@inferlet
async def main(say: list[str]) -> None:
    async with Context() as ctx:
        for text in say:
            await ctx.fill(("<|im_end|>\\n" if len(ctx) else "") + {TURN!r}.format(text))
            await send(await ctx.generate(max_tokens=48).text() + "\\n")
"""


@pytest.mark.parametrize("park", ["export", "suspend"])
def test_a_parked_session_computes_no_token_twice_and_holds_no_page(
    examples: Examples, tmp_path: Path, park: str
) -> None:
    (tmp_path / "app.py").write_text(UNPARKED)
    run = examples.run("session", say=SAY, park=park)
    plain = examples.run(str(tmp_path), say=SAY)
    assert run.text.splitlines() == plain.text.splitlines() == REPLIES
    assert run.use.tokens == plain.use.tokens
    assert run.result == [0, 0, 0]


def test_a_session_goes_on_in_another_run_as_if_it_were_one(examples: Examples) -> None:
    together = examples.run("session", say=SAY)
    apart = examples.run_each("session", [{"say": [text]} for text in SAY])
    assert "".join(run.text for run in apart).splitlines() == REPLIES
    assert together.text.splitlines() == REPLIES
    assert sum(run.use.tokens for run in apart) == together.use.tokens


def test_sessions_of_other_names_know_nothing_of_each_other(examples: Examples) -> None:
    runs = [{"say": [SAY[0]], "name": "a"}, {"say": [SAY[2]], "name": "b"}]
    _, other = examples.run_each("session", runs)
    assert "Ivan" not in other.text


@pytest.mark.parametrize("park", ["export", "suspend"])
def test_a_session_is_led_by_messages_in_both_modes(
    tiny: Pie, mode: Mode, park: str
) -> None:
    run = tiny.run_sync("session", messages=SAY, mode=mode, say=[], park=park)
    assert "".join(map(str, run.messages)).splitlines() == REPLIES
    assert run.result == [0, 0, 0]


def test_a_chat_remembers_until_it_is_reset(tiny: Pie, mode: Mode) -> None:
    lines = [*SAY, "/history", "/reset", "/history", "", SAY[2]]
    run = tiny.run_sync("chat", messages=lines, mode=mode)
    *replies, before, after, last = "".join(map(str, run.messages)).splitlines()
    assert replies == REPLIES
    assert before.startswith("[7 messages, ")
    assert after.startswith("[1 messages, ")
    assert "Ivan" not in last


def test_a_reply_is_sent_as_it_is_written(tiny: Pie, mode: Mode) -> None:
    run = tiny.run_sync("chat", messages=SAY[:1], mode=mode)
    assert len(run.messages) > 3
    assert "".join(map(str, run.messages)) == f"{REPLIES[0]}\n"


def test_between_replies_only_what_is_new_is_computed(examples: Examples) -> None:
    one, two = (examples.run("chat", say=SAY[:n]).use.tokens for n in (1, 2))
    again = examples.run("chat", say=[SAY[1]]).use.tokens
    assert two - one < again  # which has the system message to compute too


def test_the_oldest_turns_are_dropped_and_the_system_message_stays(
    examples: Examples,
) -> None:
    system = "red kite " * 60
    options: dict[str, Any] = {"max_context": 180, "max_tokens": 12, "system": system}
    lines = [line for n in range(1, 6) for line in (f"What is {n} + 1?", "/history")]
    run = examples.run("chat", say=["/history", *lines], **options)
    (start, least), *found = [
        (int(messages), int(tokens))
        for messages, tokens in re.findall(
            r"\[(\d+) messages, (\d+) tokens\]", run.text
        )
    ]
    assert (start, len(found)) == (1, 5)
    assert least > 120
    assert all(least < tokens <= 180 + 12 + 8 for _, tokens in found)  # the next header
    assert {messages % 2 for messages, _ in found} == {1}  # whole turns behind it
    assert found[-1][0] < 11


def test_a_name_is_forgotten_with_its_turn(examples: Examples) -> None:
    long = [SAY[0], SAY[1], SAY[1], SAY[2]]
    assert "Ivan" in examples.run("chat", say=long, max_context=512).text
    assert "Ivan" not in examples.run("chat", say=long, max_context=60).text
