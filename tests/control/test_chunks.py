from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import trio

from pie_trio.config import ControlConfig
from pie_trio.control.commands import Command, Kind, embed_key
from pie_trio.control.forwards import GuestForward, plan_forward
from pie_trio.control.page_table import PageTable
from pie_trio.control.tenants import Tenant
from pie_trio.engine_api import OutputSpec, SamplerSpec
from pie_trio.errors import CancelledError, EngineError
from tests.control.test_dispatch import NUM_PAGES, PAGE_SIZE, Rig, open_rig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.engine_api import OutputResult

LONG = 60
CHUNKED: dict[str, Any] = {"max_batch_tokens": 64, "chunk_tokens": 20}


class Guest:
    """An inferlet with one context."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.tenant = Tenant("guest", 1)
        self.table = PageTable(max_handles=99, page_size=PAGE_SIZE)
        for handle in range(NUM_PAGES):
            self.table.add(handle, rig.pool.allocate())

    def submit(
        self,
        token: int,
        tokens: Sequence[int],
        *,
        start: int = 0,
        outputs: Sequence[OutputSpec] = (),
        **details: Any,
    ) -> Command:
        count, rig = len(tokens), self.rig
        wanted = GuestForward(
            token_ids=np.array(tokens, np.int32),
            positions=np.arange(start, start + count, dtype=np.int32),
            pages=list(range(NUM_PAGES)),
            start=start,
            outputs=tuple(outputs),
            **details,
        )
        config = ControlConfig(max_batch_tokens=64)
        plan = plan_forward(wanted, self.table, rig.pool, rig.engine.info, config)
        stored = [
            slot
            for spec in outputs
            if spec.store is not None
            for slot in spec.store.tolist()
        ]
        read = wanted.input_slots
        used = {*stored, *(read[read >= 0].tolist() if read is not None else ())}
        command = Command(
            Kind.FORWARD,
            self.tenant,
            pages=plan.pages,
            writes=[*plan.writes, *map(embed_key, stored)],
            on_done=rig.outcomes.note(token),
            submitted_at=trio.current_time(),
            forward=plan.request,
            copies=plan.copies,
            embeds=tuple(used),
        )
        rig.batcher.submit(command)
        return command

    async def run(
        self, token: int, tokens: Sequence[int], **details: Any
    ) -> tuple[OutputResult, ...]:
        self.submit(token, tokens, **details)
        await self.rig.outcomes.wait(token)
        outcome = self.rig.outcomes.by_token[token]
        assert outcome is not None
        assert not isinstance(outcome, Exception), outcome
        return outcome


def rows(*values: int) -> Any:
    return np.array(values, np.int32)


def all_outputs(slots: Sequence[int]) -> list[OutputSpec]:
    """Return outputs in every chunk, in some, and in none."""
    return [
        OutputSpec(rows(*range(0, LONG, 7)), SamplerSpec(1.0, seed=3), top_k=4),
        OutputSpec(rows(LONG - 1), SamplerSpec(), logprobs=True, entropy=True),
        OutputSpec(rows(), SamplerSpec()),
        OutputSpec(rows(1, LONG - 2), hidden=True, store=rows(*slots)),
    ]


TOKENS = [7 * i % 251 for i in range(LONG)]


async def run_all(*, is_cut: bool) -> tuple[list[Any], list[list[int]]]:
    """Run a long forward, then read what it wrote and stored; return all results."""
    results: list[Any] = []
    async with open_rig(gated=True, num_pages=64, **CHUNKED) as rig:
        guest = Guest(rig)
        slots = [rig.embeds.allocate() for _ in range(2)]
        if is_cut:  # another command keeps the model busy
            rig.submit(0)
        guest.submit(1000, TOKENS, outputs=all_outputs(slots))
        step = 0
        while is_cut and 1000 not in rig.outcomes.by_token:
            step += 1
            await rig.gate.wait_started(step)
            rig.submit(step)
            rig.gate.let_go()
        rig.gate.open()
        await rig.outcomes.wait(1000)
        outcome = rig.outcomes.by_token[1000]
        assert isinstance(outcome, tuple), outcome
        results += list(outcome)
        results += await guest.run(
            1001, [5], start=LONG, outputs=[OutputSpec(rows(0), SamplerSpec(), 8)]
        )
        results += await guest.run(
            1002,
            [0, 0],
            start=LONG + 1,
            input_slots=rows(*slots),
            outputs=[OutputSpec(rows(0, 1), SamplerSpec(), 8)],
        )
        lengths = [
            [len(r.token_ids) for r in batch.forwards] for batch in rig.engine.batches
        ]
    return results, lengths


async def test_a_long_forward_in_chunks_has_the_results_of_a_whole_one() -> None:
    found, lengths = await run_all(is_cut=True)
    expected, whole = await run_all(is_cut=False)
    assert [LONG] in whole
    chunks = [n for batch in lengths for n in batch if n > 2]
    assert chunks == [20, 20, 20]
    assert all(1 in batch for batch in lengths if max(batch) > 2), "decodes go on"
    assert len(found) == len(expected) == 6
    for one, other in zip(found, expected, strict=True):
        for name in one.__slots__:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


async def test_a_chunk_may_be_withdrawn_and_what_it_left_out_is_a_hole() -> None:
    async with open_rig(gated=True, num_pages=64, **CHUNKED) as rig:
        guest = Guest(rig)
        rig.submit(0)
        command = guest.submit(1000, TOKENS)
        later = guest.submit(1001, [1], start=LONG)
        await rig.gate.wait_started(1)
        rig.submit(1)
        rig.gate.let_go()
        await rig.gate.wait_started(2)
        command.withdraw()
        rig.gate.open()
        await rig.outcomes.wait(1, 1000, 1001)
        assert isinstance(rig.outcomes.error(1000), CancelledError)
        assert isinstance(rig.outcomes.error(1001), CancelledError)
        assert later.num_run == 0
        num_run = command.num_run
        assert 0 < num_run < LONG
        pages = [guest.table.get(handle) for handle in range(NUM_PAGES)]
        filled = rig.pool.filled[pages].reshape(-1)
        assert filled[:num_run].all()
        assert not filled[num_run:].any()
        again = await guest.run(
            1002,
            TOKENS[num_run:],
            start=num_run,
            outputs=[OutputSpec(rows(LONG - num_run - 1), SamplerSpec())],
        )
        assert len(again[0].token_ids) == 1
        assert (await guest.run(1003, [1], start=LONG)) == ()
        assert rig.pool.holes == set()


@pytest.mark.parametrize("step", [0, 1, 2], ids=["first", "second", "last"])
async def test_a_chunk_that_fails_fails_the_forward(step: int) -> None:
    failures: dict[int, Exception] = {step: EngineError("scripted")}
    config = {**CHUNKED, "max_batch_tokens": 20}
    async with open_rig(failures=failures, **config) as rig:
        guest = Guest(rig)
        slot = rig.embeds.allocate()
        stored = OutputSpec(rows(0), store=rows(slot))
        command = guest.submit(1000, TOKENS, outputs=[stored])
        await rig.outcomes.wait(1000)
        assert str(rig.outcomes.error(1000)) == "scripted"
        assert command.num_run == 20 * step
        assert not rig.embeds.are_filled([slot])
        guest.submit(1001, [1], start=LONG)
        guest.submit(1002, [1], start=LONG + 1, input_slots=rows(slot))
        await rig.outcomes.wait(1001, 1002)
        for token in (1001, 1002):
            assert isinstance(rig.outcomes.error(token), CancelledError)


async def test_a_projection_is_not_held_back_by_the_chunks_of_a_prefill() -> None:
    async with open_rig(gated=True, num_pages=64, **CHUNKED) as rig:
        guest = Guest(rig)
        slot = rig.embeds.allocate()
        rig.embeds.note_stored([slot])
        rig.submit(0)
        guest.submit(1000, TOKENS)
        await rig.gate.wait_started(1)
        for token in (1, 2):
            rig.batcher.submit(rig.outcomes.project(token, [slot]))
        rig.gate.open()
        await rig.outcomes.wait(1000, 1, 2)
        kinds = [bool(batch.projections) for batch in rig.engine.batches]
        assert kinds.index(True) < len(kinds) - 1


async def test_an_embed_whose_second_writer_failed_is_not_the_first_ones() -> None:
    async with open_rig() as rig:
        guest = Guest(rig)
        slot = rig.embeds.allocate()
        stored = [OutputSpec(rows(0), store=rows(slot))]
        await guest.run(1000, [1], outputs=stored)
        assert rig.embeds.are_filled([slot])
        guest.submit(1001, [1], start=1, outputs=stored).withdraw()
        guest.submit(1002, [0], start=1, input_slots=rows(slot))
        await rig.outcomes.wait(1002)
        assert isinstance(rig.outcomes.error(1002), CancelledError)
