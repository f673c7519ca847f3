"""Grammars and penalties as a program uses them, in Wasm over a fake engine."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.inference.fake import FakeEngine
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher

LIMIT_SECONDS = 120
FORM = "[a-f]{6}-[0-9]{6}"
SCHEMA = {"enum": [{"name": "Ann"}, {"name": "Bob"}]}

pytestmark = pytest.mark.usefixtures("_needs_grammars")


@pytest.fixture
def _needs_grammars() -> None:
    pytest.importorskip("llguidance")


async def run(launcher: Launcher, body: str) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program_of(body), {}).run())


@pytest.mark.parametrize("stepwise", [False, True])
@pytest.mark.parametrize(
    "constraint",
    [f"regex={FORM!r}", f"grammar=Grammar.lark('start: /{FORM}/')"],
    ids=["regex", "lark"],
)
async def test_a_generation_keeps_to_its_grammar_and_ends_with_it(
    open_fake: OpenLauncher, constraint: str, stepwise: bool
) -> None:
    body = f"""
async with Context() as ctx:
    await ctx.fill("x")
    generation = ctx.generate(
        {constraint}, sampler=Sampler(seed=3), stepwise={stepwise}, stop_tokens=[]
    )
    text = await generation.text()
    return [text, generation.finish_reason, len(generation.token_ids), ctx.text()]
"""
    async with open_fake() as launcher:
        text, reason, num_tokens, whole = await run(launcher, body)
        assert re.fullmatch(FORM, text)
        assert (reason, num_tokens, whole) == ("stop", 13, "x" + text)


async def test_stepping_draws_the_same_tokens_as_streaming(
    open_fake: OpenLauncher,
) -> None:
    body = """
found = []
for stepwise in (False, True):
    async with Context() as ctx, await Processor.create(
        repetition_penalty=1.2, dry_multiplier=1.0, mirostat_tau=4.0, mirostat_eta=0.5
    ) as processor:
        await ctx.fill("x")
        sampler = Sampler(seed=3, typical_p=0.95, xtc_probability=0.5, xtc_threshold=0.01)
        found.append(await ctx.generate(
            max_tokens=40, sampler=sampler, processor=processor, stepwise=stepwise
        ).tokens())
return found
"""
    async with open_fake() as launcher:
        streamed, stepped = await run(launcher, body)
        assert streamed == stepped
        assert len(streamed) == 40


async def test_a_type_is_a_schema(open_fake: OpenLauncher) -> None:
    body = """
from typing import Literal, TypedDict
class Person(TypedDict):
    name: Literal["Ann", "Bob"]
spaces = {ord(c): float("-inf") for c in " \\n\\t\\r"}  # random text likes them too well
texts = []
for schema in (Person, {"enum": [{"name": "Ann"}, {"name": "Bob"}]}, '{"const": 7}'):
    async with await Processor.create(
        grammar=Grammar.json_schema(schema), bias=spaces
    ) as processor, Context() as ctx:
        await ctx.fill("x")
        texts.append(await ctx.generate(processor=processor).text())
return texts
"""
    async with open_fake() as launcher:
        first, second, third = await run(launcher, body)
        assert json.loads(first) in SCHEMA["enum"]
        assert json.loads(second) in SCHEMA["enum"]
        assert json.loads(third) == 7


async def test_a_fork_in_the_middle_goes_on_under_the_grammar(
    open_fake: OpenLauncher,
) -> None:
    body = f"""
async with Context() as ctx:
    await ctx.fill("x")
    generation = ctx.generate(regex={FORM!r}, sampler=Sampler(seed=1))
    first = await anext(generation)
    async with ctx.fork() as child:
        there = first.text + await child.generate(
            processor=child.processor, sampler=Sampler(seed=2)
        ).text()
    here = first.text + await generation.text()
    return [here, there, ctx.processor is None, child.processor is None]
"""
    async with open_fake() as launcher:
        here, there, *ended = await run(launcher, body)
        assert re.fullmatch(FORM, here)
        assert re.fullmatch(FORM, there)
        assert here != there
        assert ended == [True, True]


async def test_a_generation_that_was_interrupted_goes_on_as_if_it_had_not_been(
    open_fake: OpenLauncher,
) -> None:
    body = f"""
found = []
for is_interrupted in (False, True):
    async with Context() as ctx, await Processor.create(
        grammar=Grammar.regex({FORM!r}), presence_penalty=0.5, mirostat_tau=2.0
    ) as processor:
        await ctx.fill("x")
        generation = ctx.generate(processor=processor, sampler=Sampler(seed=4))
        tokens = []
        async for chunk in generation:
            tokens += chunk.token_ids
            if is_interrupted:
                await ctx.forward()  # ends the stream; the next chunk needs another
        found.append(tokens)
return found
"""
    async with open_fake() as launcher:
        whole, interrupted = await run(launcher, body)
        assert interrupted == whole
        assert re.fullmatch(FORM, bytes(whole).decode())


async def test_what_was_left_gives_its_processor_back(open_fake: OpenLauncher) -> None:
    body = f"""
async with Context() as ctx:
    await ctx.fill("x")
    for _ in range(12):
        async for chunk in ctx.generate(regex={FORM!r}): break
    for _ in range(12):
        await ctx.generate(regex={FORM!r}, max_tokens=2).text()
    for _ in range(5):
        with move_on_after(0): await ctx.generate(regex={FORM!r}).text()
    async with ctx.fork() as child: pass
    generation = ctx.generate(regex={FORM!r})
    await anext(generation)
    try: forks = [ctx.fork() for _ in range(12)]
    except LimitError as error: return str(error)
"""
    # A generation has one, and a copy in its stream, until the step that runs has ended.
    async with open_fake(max_processors=12) as launcher:
        assert "an inferlet may have 12" in await run(launcher, body)


async def test_a_program_samples_and_accepts_by_itself(open_fake: OpenLauncher) -> None:
    body = """
async with Context() as ctx, await Processor.create(
    grammar=Grammar.regex("(ab|cd)+"), allowed_tokens=[97, 98, 257]
) as processor:
    await ctx.fill("x")
    steps = [processor.allowed()]
    token = await ctx.sample(Greedy(), processor=processor)
    steps.append([token, processor.accept([token, 120]), processor.allowed()])
    other = processor.fork()
    steps.append([other.accept([98]), other.allowed(), processor.allowed()])
    other.close()
    processor.rollback(1)
    steps.append(processor.allowed())
    with Queue() as queue:
        pages = queue.alloc_kvpages(1)
        output = Output(sampler=TopP(0.5), processor=processor)
        (result,) = await queue.forward_text([65], pages=pages, outputs=[output])
        steps.append(list(result.tokens))
    async with await Processor.create(grammar=Grammar.regex("a")) as short:
        steps.append([short.has_ended, short.accept([97]), short.has_ended])
    return steps
"""
    async with open_fake() as launcher:
        assert await run(launcher, body) == [
            [97],
            [97, 1, [98]],
            [1, [97, 257], [98]],
            [97],
            [97],
            [False, 1, True],
        ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("ctx.generate(regex='a', json_schema={})", "one of processor, grammar"),
        ("ctx.generate(regex='a', processor=processor)", "one of processor, grammar"),
        ("await ctx.generate(regex='(').text()", "regex"),
        ("await Processor.create(grammar=Grammar.gbnf('root ='))", "gbnf"),
        ("await Processor.create(repetition_penalty=-1)", "repetition_penalty"),
        ("await Processor.create(repetition_penalty=0)", "repetition_penalty is above 0"),
        ("await Processor.create(dry_multiplier=1, dry_base=0.5)", "dry_base is at least"),
        ("await Processor.create(window=-1)", "window is an int"),
        ("await Processor.create(bias={300: 1.0})", "300 is not below 258"),
        ("await Processor.create(bias={1: float('inf')})", "amount of a bias"),
        ("await Processor.create(allowed_tokens=[])", "no token is allowed"),
        ("await Processor.create(model='x')", "there is no model 'x'"),
        ("processor.accept([258])", "258 is not below 258"),
        ("processor.rollback(1)", "cannot take back 1"),
        ("Output(rows=[0, 1], sampler=Greedy(), processor=processor).values(2)", "one row"),
        ("Output(processor=processor).values(2)", "has a sampler and one row"),
        ("Sampler(typical_p=0)", "typical_p is a number above 0"),
        ("Sampler(xtc_probability=2)", "xtc_probability is a number from 0"),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_an_error_that_names_it(
    open_fake: OpenLauncher, call: str, message: str
) -> None:
    body = f"""
async with Context() as ctx, await Processor.create() as processor:
    await ctx.fill("x")
    try: {call}
    except BadArgumentError as error: return str(error)
"""
    async with open_fake() as launcher:
        assert message in await run(launcher, body)


async def test_a_processor_that_others_move_is_found_out(
    open_fake: OpenLauncher,
) -> None:
    body = """
async with Context() as ctx, await Processor.create(
    grammar=Grammar.regex("ab+")
) as processor:
    await ctx.fill("x")
    generation = ctx.generate(processor=processor, max_tokens=40)
    await anext(generation)
    processor.rollback(1)
    try: await generation.text()
    except BadArgumentError as error: return str(error)
"""
    async with open_fake(engine=FakeEngine()) as launcher:
        assert "does not stand where the generation is" in await run(launcher, body)


async def test_a_cancelled_sample_leaves_a_generation_possible(
    open_fake: OpenLauncher,
) -> None:
    body = f"""
async with Context() as ctx, await Processor.create(
    grammar=Grammar.regex({FORM!r})
) as processor:
    await ctx.fill("x")
    generation = ctx.generate(processor=processor)
    for _ in range(20):
        with move_on_after(0.0002): await ctx.sample(Greedy(), processor=processor)
        if generation.finish_reason is None: await anext(generation, None)
    await generation.text()
    return ctx.text()[1:]
"""
    async with open_fake() as launcher:
        assert re.fullmatch(FORM, await run(launcher, body))
