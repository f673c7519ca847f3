"""Contexts that hide tokens, outlive their program, or share what they begin with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.errors import GuestFailedError
from pie_trio.inference.fake import FakeEngine, fake_continuation
from tests.application.conftest import OpenLauncher, program_of

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import SourceProgram

LIMIT_SECONDS = 120
PROMPT = "What all programs begin with, more than two pages of it."
TOKENS = [256, *PROMPT.encode()]
FOUR = "(await ctx.generate(max_tokens=4, stop_tokens=[]).tokens())"


async def run(launcher: Launcher, program: SourceProgram) -> Any:
    with trio.fail_after(LIMIT_SECONDS):
        return json.loads(await launcher.prepare(program, {}).run())


def num_tokens(engine: FakeEngine) -> int:
    return sum(len(f.token_ids) for batch in engine.batches for f in batch.forwards)


REUSING = program_of(
    "async with Context() as ctx:\n"
    "    await ctx.fill(prompt, reuse=True)\n"
    f"    return {FOUR}",
    parameters=f"prompt: str = {PROMPT!r}",
)


async def test_what_programs_have_in_common_is_computed_once(
    open_fake: OpenLauncher,
) -> None:
    engine = FakeEngine()
    async with open_fake(engine=engine) as launcher:
        (model,) = launcher.models.values()
        expected = fake_continuation(TOKENS, 4)
        assert await run(launcher, REUSING) == expected
        first = num_tokens(engine)
        assert await run(launcher, REUSING) == expected
        second = num_tokens(engine) - first
        full = (len(TOKENS) - 1) // 16 * 16
        assert first - second == full
        # Another text with the same beginning finds its first page.
        other = PROMPT[:20] + " else"
        instance = launcher.prepare(REUSING, {"prompt": other})
        with trio.fail_after(LIMIT_SECONDS):
            found = json.loads(await instance.run())
        assert found == fake_continuation([256, *other.encode()], 4)
        third = num_tokens(engine) - first - second
        assert third == len(other) + 1 - 16 + 3
        assert len(model.exports) == full // 16
        model.exports.clear()


async def test_a_prompt_that_is_shared_is_one_forward(open_fake: OpenLauncher) -> None:
    engine = FakeEngine()
    async with open_fake(engine=engine) as launcher:
        (model,) = launcher.models.values()
        await run(launcher, REUSING)
        found = [len(f.token_ids) for batch in engine.batches for f in batch.forwards]
        assert found == [len(TOKENS), 1, 1, 1]
        model.exports.clear()


async def test_what_others_compute_before_it_runs_is_found(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "ctx, again = Context(), Context()\n"
        f"await ctx.fill({PROMPT!r}, reuse=True)\n"
        f"await again.fill({PROMPT!r}, reuse=True)\n"
        f"return [{FOUR}, {FOUR.replace('ctx', 'again')}, ctx.num_reused, again.num_reused]"
    )
    engine = FakeEngine()
    async with open_fake(engine=engine) as launcher:
        (model,) = launcher.models.values()
        expected = fake_continuation(TOKENS, 4)
        assert await run(launcher, program) == [expected, expected, 0, FULL]
        found = [len(f.token_ids) for batch in engine.batches for f in batch.forwards]
        assert found == [len(TOKENS), 1, 1, 1, len(TOKENS) - FULL, 1, 1, 1]
        model.exports.clear()


FULL = (len(TOKENS) - 1) // 16 * 16
CHANGES = {
    "nothing": ("pass", FULL),
    "a fork": ("fork = ctx.fork()", FULL),
    "cut and gone on": ("ctx.truncate(20); ctx.append([7] * 40)", 16),
    "masked": ("ctx.mask(0, 4)", 0),
    "masked for a while": (
        "ctx.mask(0, 4)\n"
        "await ctx.forward()\n"
        "ctx.mask(0, 4, hidden=False)\n"
        "await ctx.fill([], reuse=True)",
        0,
    ),
    "a fork that is gone, cut": (
        "fork = ctx.fork(); fork.close(); ctx.truncate(26); ctx.append([7] * 40)",
        16,
    ),
    "cut to where another has filled it": (
        "ctx.truncate(32)\n"
        "other = Context()\n"
        f"await other.fill({PROMPT!r}, reuse=True)\n"
        "await other.forward()",
        FULL,
    ),
    "exported with other tokens than it has": (
        "lies = Context()\n"
        "lies.append([7] * 33)\n"
        "await lies.forward()\n"
        f"lies.token_ids = {TOKENS[:33]!r}\n"
        "lies.export('story')\n"
        "other = Context.from_export('story')\n"
        f"await other.fill({TOKENS[33:]!r}, reuse=True)\n"
        "await other.forward()\n"
        "ctx.truncate(0); ctx.append([7] * 60)",
        0,
    ),
    "cut to nothing": ("ctx.truncate(0); ctx.append([7] * 60)", 0),
    "given up": (
        "with move_on_after(0):\n"
        "    await checkpoint()\n"
        "    await ctx.forward()\n"
        "ctx.truncate(18)\n"
        "ctx.append([7] * 40)",
        16,
    ),
}


@pytest.mark.parametrize(("change", "num_found"), CHANGES.values(), ids=CHANGES)
async def test_what_is_found_is_what_the_name_says(
    open_fake: OpenLauncher, change: str, num_found: int
) -> None:
    """Between the fill and the forward that it is computed with, a context may change."""
    program = program_of(
        "ctx, again = Context(), Context()\n"
        f"await ctx.fill({PROMPT!r}, reuse=True)\n"
        f"{change}\n"
        f"{FOUR}\n"
        f"await again.fill({PROMPT!r}, reuse=True)\n"
        f"return [again.num_reused, {FOUR.replace('ctx', 'again')}]"
    )
    async with open_fake() as launcher:
        (model,) = launcher.models.values()
        found, tokens = await run(launcher, program)
        assert tokens == fake_continuation(TOKENS, 4)
        assert found == num_found
        model.exports.clear()


async def test_what_was_generated_is_shared_by_the_next_fill(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "async with Context() as ctx, Context() as again, Context() as fork:\n"
        f"    await ctx.fill({PROMPT!r}, reuse=True)\n"
        f"    said = await ctx.generate(max_tokens=40, stop_tokens=[]).tokens()\n"
        "    ctx.truncate(len(ctx) - 2)\n"
        "    await ctx.fill([], reuse=True)\n"
        "    await again.fill(ctx.token_ids, reuse=True)\n"
        f"    await fork.fill([*ctx.token_ids[:-1], 7, 8], reuse=True)\n"
        "    return [said, len(ctx), ctx.num_reused, again.num_reused, fork.num_reused,"
        " await again.generate(max_tokens=2, stop_tokens=[]).tokens(), again.fork().num_reused]"
    )
    async with open_fake(engine=FakeEngine()) as launcher:
        said, length, *reused, going_on, of_fork = await run(launcher, program)
        (model,) = launcher.models.values()
        full = (length - 1) // 16 * 16
        assert length == len(TOKENS) + 38
        assert reused == [0, full, full]
        assert of_fork == full
        assert going_on == said[-2:] == fake_continuation(TOKENS, 40)[-2:]
        assert len(model.exports) == full // 16
        model.exports.clear()


async def test_a_context_outlives_its_program(open_fake: OpenLauncher) -> None:
    exporting = program_of(
        "async with Context() as ctx:\n"
        f"    await ctx.fill({PROMPT!r})\n"
        "    ctx.export('story', persistent=True)\n"
        "    await ctx.generate(max_tokens=2, stop_tokens=[]).tokens()\n"
    )
    importing = program_of(
        "ctx, other = Context.from_export('story'), Context.from_export('story')\n"
        "other.append([65])\n"
        f"found = [{FOUR}]\n"
        "ctx = other\n"
        f"found.append({FOUR})\n"
        "return found"
    )
    engine = FakeEngine()
    async with open_fake(engine=engine) as launcher:
        (model,) = launcher.models.values()
        await run(launcher, exporting)
        before = num_tokens(engine)
        assert await run(launcher, importing) == [
            fake_continuation(TOKENS, 4),
            fake_continuation([*TOKENS, 65], 4),
        ]
        assert num_tokens(engine) - before == 4 + 5
        model.exports.clear()


async def test_an_export_without_a_context_is_refused(open_fake: OpenLauncher) -> None:
    program = program_of(
        "queue = Queue()\n"
        "queue.export_kvpages(queue.alloc_kvpages(1), 'pages', metadata=b'mine')\n"
        "Context.from_export('pages')"
    )
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError, match="holds pages, but no context"):
            await run(launcher, program)
        with pytest.raises(GuestFailedError, match="no export 'nothing'"):
            await run(launcher, program_of("Context.from_export('nothing')"))


async def test_hidden_tokens_are_not_attended_to(open_fake: OpenLauncher) -> None:
    """Under a mask, what is generated depends on the other tokens alone."""
    program = program_of(
        "results = []\n"
        "for middle in ([5] * 40, [6] * 40):\n"
        "    async with Context() as ctx:\n"
        "        ctx.append([1, 2, *middle])\n"
        "        ctx.mask(0, 42)\n"
        "        ctx.append([7])\n"
        "        async with ctx.fork() as fork:\n"
        "            ours = []\n"
        "            for c in (ctx, fork):\n"
        "                ours.append(await c.generate(\n"
        "                    max_tokens=4, stop_tokens=[], stepwise=c is fork).tokens())\n"
        "        assert ours[0] == ours[1], ours\n"
        "        results.append(ours[0])\n"
        "        ctx.truncate(43)\n"
        "        ctx.mask(0, 42, hidden=False)\n"
        "        seen = await ctx.generate(max_tokens=4, stop_tokens=[]).tokens()\n"
        "        assert seen != ours[0]\n"
        "return results"
    )
    async with open_fake() as launcher:
        one, two = await run(launcher, program)
        assert one == two


@pytest.mark.parametrize("arguments", ["0, 9", "3, 2", "-1, 1"])
async def test_what_is_not_there_cannot_be_hidden(
    open_fake: OpenLauncher, arguments: str
) -> None:
    program = program_of(f"ctx = Context()\nctx.append([1, 2])\nctx.mask({arguments})")
    async with open_fake() as launcher:
        with pytest.raises(GuestFailedError):
            await run(launcher, program)


async def test_an_imported_context_knows_what_it_hides(open_fake: OpenLauncher) -> None:
    program = program_of(
        "ctx = Context()\n"
        "ctx.append(list(range(1, 40)))\n"
        "ctx.mask(2, 30)\n"
        "ctx.export('hiding')\n"
        "found = []\n"
        "for other in (ctx.fork(), Context.from_export('hiding')):\n"
        "    other.mask(0, 1)\n"
        "    other.append([7])\n"
        "    found.append((await other.forward(top=4)).token_ids)\n"
        "assert found[0] == found[1], found\n"
        "return len(found)"
    )
    async with open_fake() as launcher:
        assert await run(launcher, program) == 2


async def test_a_last_token_on_a_page_of_its_own_can_be_hidden(
    open_fake: OpenLauncher,
) -> None:
    program = program_of(
        "results = []\n"
        "for last in (3, 4):\n"
        "    ctx = Context()\n"
        "    ctx.append([1] * 16 + [last])\n"
        "    ctx.mask(16, 17)\n"
        "    await ctx.forward(top=1)\n"
        "    results.append((await ctx.forward([9], top=8)).token_ids)\n"
        "return results"
    )
    async with open_fake() as launcher:
        one, two = await run(launcher, program)
        assert one == two, "nobody after it sees the hidden token"


HIDING = {
    "nothing": "pass",
    "several": "ctx.mask(2, 18); ctx.mask(20, 21)",
    "pages": "await ctx.drop(0, 35)",
}


@pytest.mark.parametrize("hide", HIDING.values(), ids=HIDING.keys())
async def test_a_context_whose_pages_are_gone_is_filled_again_and_exported(
    open_fake: OpenLauncher, hide: str
) -> None:
    exports = program_of(
        "ctx = Context()\n"
        "ctx.append(list(range(1, 50)))\n"
        f"{hide}\n"
        "ctx.export('story', persistent=True)\n"
        f"return {FOUR}"
    )
    imports = program_of(
        "try:\n"
        "    Context.from_export('story')\n"
        "except ExportLostError as error:\n"
        "    assert isinstance(error, NotFoundError) and 'story' in str(error)\n"
        "    (info,) = Queue().list_exports()\n"
        "    assert info.num_pages == 0 and info.persistent\n"
        "else:\n"
        "    return False\n"
        "ctx = Context.from_export('story', refill=True)\n"
        "ctx.export('story', persistent=True)\n"
        f"return {FOUR}"
    )
    again = program_of(f"ctx = Context.from_export('story')\nreturn {FOUR}")
    engine = FakeEngine()
    async with open_fake(engine=engine) as launcher:
        (model,) = launcher.models.values()
        expected = await run(launcher, exports)
        model.pool.lose_device()
        model.exports.lose("the engine was lost")
        assert await run(launcher, imports) == expected
        before = num_tokens(engine)
        assert await run(launcher, again) == expected
        assert num_tokens(engine) - before < 10, "nothing was computed twice"
        model.exports.clear()
