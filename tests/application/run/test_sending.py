"""What a generation sends to the client while the program waits, in Wasm and natively."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trio

from pie_trio.errors import EngineError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.conftest import OpenLauncher, program_of
from tests.application.run.natively import run_natively

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

LIMIT_SECONDS = 120
COUNT = 40
EXPECTED = fake_continuation([256, *b"x"], COUNT)
TEXT = bytes(t for t in EXPECTED if t < 256).decode(errors="replace")
ALL = f"max_tokens={COUNT}, stop_tokens=[]"


class Found(NamedTuple):
    """What a program has returned, and what it has sent."""

    result: Any
    messages: list[str | bytes]

    @property
    def text(self) -> str:
        return "".join(map(str, self.messages))


@pytest.fixture(params=["wasm", "native"])
def run(request: pytest.FixtureRequest) -> Callable[..., Awaitable[Found]]:
    """Runs the body of a program whose context ``ctx`` is filled."""
    open_fake: OpenLauncher = request.getfixturevalue("open_fake")

    async def run_it(
        *body: str, failures: Mapping[int, Exception] | None = None
    ) -> Found:
        lines = "".join(f"    {line}\n" for part in body for line in part.splitlines())
        program = program_of(
            f"async with Context() as ctx:\n    await ctx.fill('x')\n{lines}"
        )
        engine = FakeEngine(failures=failures)
        with trio.fail_after(LIMIT_SECONDS):
            if request.param == "native":
                return Found(*await run_natively(engine, program))
            async with open_fake(engine=engine) as launcher:
                instance = launcher.prepare(program, {})
                result = json.loads(await instance.run())
                return Found(result, await instance.session.outbox.take())

    return run_it


REPORT = "return [text, generation.token_ids, ctx.token_ids[2:], generation.finish_reason, ctx.num_pages]"


@pytest.mark.parametrize("extra", ["", "stepwise=True", "stop=['\\0' * 70] * 70"])
async def test_the_client_gets_what_a_loop_would_send(run: Any, extra: str) -> None:
    found = await run(
        f"generation = ctx.generate({ALL}, {extra})",
        "text = await generation.send()",
        REPORT,
    )
    assert found.result == [TEXT, EXPECTED, EXPECTED, "length", 3]
    assert found.text == TEXT
    assert len(found.messages) > 1
    assert all(found.messages)


async def test_fields_make_each_piece_an_object(run: Any) -> None:
    found = await run(
        f"generation = ctx.generate({ALL})",
        "return await generation.send({'choice': 2, 'name': '\\xfc\"'})",
    )
    pieces = [json.loads(message) for message in found.messages]
    assert "".join(piece["text"] for piece in pieces) == TEXT == found.result
    assert all(
        piece == {"choice": 2, "name": 'ü"', "text": piece["text"]} for piece in pieces
    )


async def test_what_was_read_before_is_not_sent(run: Any) -> None:
    found = await run(
        f"generation = ctx.generate({ALL})",
        "first = ''",
        "while len(generation.token_ids) < 9: first += (await anext(generation)).text",
        "text = await generation.send()",
        "return [first + text, text, ctx.token_ids[2:]]",
    )
    whole, text, tokens = found.result
    assert (whole, tokens) == (TEXT, EXPECTED)
    assert found.text == text
    assert len(text) < len(TEXT)


async def test_it_ends_where_the_generation_does(run: Any) -> None:
    found = await run(
        f"whole = await ctx.fork().generate({ALL}).text()",
        "stop = next(whole[at:at + 2] for at in range(6, 30)"
        " if '\\ufffd' not in whole[at:at + 2])",
        f"generation = ctx.generate({ALL}, stop=stop)",
        "text = await generation.send()",
        "assert text == whole[:whole.index(stop)]",
        REPORT,
    )
    assert found.text == found.result[0]
    assert found.result[3] == "stop"
    found = await run(
        f"generation = ctx.generate(max_tokens=40, stop_tokens=[{EXPECTED[7]}])",
        "text = await generation.send()",
        REPORT,
    )
    cut = EXPECTED[: EXPECTED.index(EXPECTED[7])]
    assert found.result[1:4] == [cut, cut, "stop"]


@pytest.mark.parametrize("extra", ["", "stepwise=True", "stop=['\\0' * 70] * 70"])
async def test_what_is_waited_for_to_the_end_is_sent_to_nobody(
    run: Any, extra: str
) -> None:
    found = await run(
        f"generation = ctx.fork().generate({ALL}, {extra})",
        "first = (await anext(generation)).token_ids",
        "tokens = [*first, *await generation.tokens()]",
        f"generation = ctx.generate({ALL}, {extra})",
        "text = await generation.text()",
        "assert tokens == generation.token_ids",
        REPORT,
    )
    assert found.result == [TEXT, EXPECTED, EXPECTED, "length", 3]
    assert not found.messages


async def test_a_program_that_waits_for_all_tokens_is_woken_once(
    open_fake: OpenLauncher,
) -> None:
    body = (
        "async with Context() as ctx:\n    await ctx.fill('x')\n    await ctx.forward()\n"
        "    await ctx.generate(max_tokens=MOST, stop_tokens=[]).tokens()\n"
    )
    num_turns: list[int] = []
    async with open_fake() as launcher:
        for most in ("20", "60"):
            instance = launcher.prepare(program_of(body.replace("MOST", most)), {})
            settle, turns = instance.session.settle, [0]

            def count(
                settle: Callable[[], None] = settle, turns: list[int] = turns
            ) -> None:
                turns[0] += 1
                settle()

            instance.session.settle = count  # type: ignore[method-assign]
            await instance.run()
            num_turns.append(turns[0])
    # On a busy machine a slice may end in the middle of a turn; forty tokens more are forty turns.
    assert num_turns[1] < num_turns[0] + 20


@pytest.mark.parametrize("seconds", [0, 0.0003, 0.001, 0.003, 0.01])
async def test_what_was_read_before_it_was_cancelled_is_in_the_context(
    run: Any, seconds: float
) -> None:
    found = await run(
        f"generation = ctx.generate({ALL})",
        f"with move_on_after({seconds}): await generation.tokens()",
        "read = list(generation.token_ids)",
        "assert ctx.token_ids[2:] == read",
        "rest = await generation.tokens()",
        "return [read + rest, generation.token_ids, ctx.token_ids[2:], ctx.num_pages]",
    )
    assert found.result == [EXPECTED, EXPECTED, EXPECTED, 3]
    assert not found.messages


@pytest.mark.parametrize("seconds", [0, 0.0003, 0.001, 0.003, 0.01])
async def test_what_was_sent_before_it_was_cancelled_is_in_the_context(
    run: Any, seconds: float
) -> None:
    found = await run(
        f"generation = ctx.generate({ALL})",
        f"with move_on_after({seconds}): await generation.send()",
        "sent = list(generation.token_ids)",
        "assert ctx.token_ids[2:] == sent",
        "rest = ''.join([chunk.text async for chunk in generation])",
        "return [sent, rest, generation.token_ids, ctx.token_ids[2:], ctx.num_pages]",
    )
    sent, rest, *tokens, num_pages = found.result
    assert (tokens, num_pages) == ([EXPECTED] * 2, 3)
    assert sent == EXPECTED[: len(sent)]
    # How many marks stand for bytes that are no text depends on where the decoding began.
    assert _without_marks(found.text + rest) == _without_marks(TEXT)


def _without_marks(text: str) -> str:
    return text.replace("\ufffd", "")


async def test_another_task_may_use_the_context_meanwhile(run: Any) -> None:
    found = await run(
        f"generation = ctx.generate({ALL})",
        "async def fork():",
        "    while len(children) < 5:",
        "        await sleep(0)",
        "        with ctx.fork() as child: children.append(child.token_ids[2:])",
        "children = []",
        "async with open_nursery() as nursery:",
        "    nursery.start_soon(fork)",
        "    text = await generation.send()",
        "return [text, generation.token_ids, ctx.token_ids[2:], children]",
    )
    text, *tokens, children = found.result
    assert tokens == [EXPECTED] * 2
    assert _without_marks(found.text) == _without_marks(TEXT)
    assert found.text.endswith(text)
    for child in children:
        assert child == EXPECTED[: len(child)]


async def test_a_step_that_fails_leaves_what_was_sent(run: Any) -> None:
    found = await run(
        f"generation = ctx.generate({ALL})",
        "try: await generation.send()",
        "except Exception as error: failure = str(error)",
        "sent = list(generation.token_ids)",
        "rest = await generation.send()",
        "return [failure, sent, generation.token_ids, ctx.token_ids[2:]]",
        failures={6: EngineError("scripted")},
    )
    failure, sent, *tokens = found.result
    assert "scripted" in failure
    assert sent == EXPECTED[:6]
    assert tokens == [EXPECTED] * 2
    assert _without_marks(found.text) == _without_marks(TEXT)


@pytest.mark.parametrize("run", ["wasm"], indirect=True)
async def test_a_grammar_is_told_what_was_sent(run: Any) -> None:
    found = await run(
        "processor = await Processor.create(grammar=Grammar.regex('[ab]{5}'))",
        "generation = ctx.generate(max_tokens=9, processor=processor)",
        "text = await generation.send()",
        "return [text, processor.has_ended]",
    )
    text, has_ended = found.result
    assert len(text) == 5
    assert has_ended
    assert found.text == text
