"""What a context asks for again and again, it does not describe anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.control.following import ForwardTail
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.control.forwards import ForwardPlan
    from pie_trio.engine_api import Batch

LIMIT_SECONDS = 120
PROMPT = "two pages and more"
NUM_TOKENS = 40
EXPECTED = fake_continuation([256, *PROMPT.encode()], NUM_TOKENS)


@pytest.fixture
def followed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the numbers of tokens of the forwards that followed another one."""
    found: list[int] = []
    plan_next = ForwardTail.plan_next

    def counting(
        self: ForwardTail, tokens: Any, *args: Any, **kwargs: Any
    ) -> ForwardPlan:
        found.append(len(tokens))
        return plan_next(self, tokens, *args, **kwargs)

    monkeypatch.setattr(ForwardTail, "plan_next", counting)
    return found


async def run(
    open_fake: OpenLauncher, body: str, engine: FakeEngine | None = None
) -> Any:
    program = program_of(
        "async with Context() as ctx:\n"
        f"    await ctx.fill({PROMPT!r})\n"
        + "".join(f"    {x}\n" for x in body.splitlines())
    )
    async with open_fake(engine=engine) as launcher:
        with trio.fail_after(LIMIT_SECONDS):
            return json.loads(await launcher.prepare(program, {}).run())


@pytest.mark.parametrize(
    "body",
    [
        f"return await ctx.generate(max_tokens={NUM_TOKENS}, stop_tokens=[], stepwise=True)"
        ".tokens()",
        f"for _ in range({NUM_TOKENS}): ctx.append([await ctx.sample(Greedy())])\n"
        f"return ctx.token_ids[-{NUM_TOKENS}:]",
        "found = [(await ctx.forward()).argmax()]\n"
        f"while len(found) < {NUM_TOKENS}:\n"
        "    found.append((await ctx.forward([found[-1]])).argmax())\n"
        "return found",
    ],
)
async def test_a_loop_follows_itself(
    open_fake: OpenLauncher, followed: list[int], body: str
) -> None:
    body = body.replace("Greedy()", "greedy")
    assert await run(open_fake, "greedy = Greedy()\n" + body) == EXPECTED
    assert followed == [1] * (NUM_TOKENS - 1)


async def test_what_is_done_in_between_does_not_change_the_tokens(
    open_fake: OpenLauncher, followed: list[int]
) -> None:
    body = (
        "found, greedy = [], Greedy()\n"
        f"for number in range({NUM_TOKENS}):\n"
        "    if number % 7 == 2:\n"
        "        child = ctx.fork()\n"
        "        await child.forward([65, 66])\n"
        "        await child.sample(greedy)\n"
        "        child.close()\n"
        "    if number % 7 == 3:\n"
        "        ctx.append([67, 68, 69])\n"
        "        await ctx.sample(greedy)\n"
        "        ctx.truncate(len(ctx) - 3)\n"
        "    if number % 7 == 4:\n"
        "        ctx.append(await ctx.generate(max_tokens=2, stop_tokens=[]).tokens())\n"
        "        ctx.truncate(len(ctx) - 4)\n"
        "    if number % 7 == 5:\n"
        "        assert await ctx.sample(greedy) == await ctx.sample(greedy)\n"
        "    found.append(await ctx.sample(greedy))\n"
        "    ctx.append(found[-1:])\n"
        "return found"
    )
    assert await run(open_fake, body) == EXPECTED
    assert len(followed) > NUM_TOKENS // 2


async def test_a_sampler_without_a_seed_draws_anew_in_the_same_place(
    open_fake: OpenLauncher,
) -> None:
    """In the next place it draws anew with the same seed."""
    seeds: list[tuple[int, int]] = []

    def note(batch: Batch) -> None:
        for request in batch.forwards:
            sampler = request.outputs[0].sampler
            assert sampler is not None
            seeds.append((int(request.positions[-1]), sampler.seed))

    body = (
        "sampler = Sampler(temperature=1.0)\n"
        "for _ in range(5): await ctx.sample(sampler)\n"
        "for _ in range(5): ctx.append([await ctx.sample(sampler)])"
    )
    await run(open_fake, body, FakeEngine(on_step=note))
    assert len(seeds) == len(set(seeds)) == 10


async def test_more_branches_than_the_host_remembers_decode_all_the_same(
    open_fake: OpenLauncher,
) -> None:
    body = (
        "async def decode(child, found):\n"
        "    tokens = await child.generate(max_tokens=5, stop_tokens=[], stepwise=True).tokens()\n"
        "    found.append(tokens)\n"
        "    child.close()\n"
        "found = []\n"
        "async with open_nursery() as nursery:\n"
        "    for _ in range(80): nursery.start_soon(decode, ctx.fork(), found)\n"
        "return found"
    )
    assert await run(open_fake, body) == [EXPECTED[:5]] * 80
