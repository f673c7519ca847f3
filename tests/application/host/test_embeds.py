"""The paper's calls, one by one: embeds in, hidden states and distributions out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.application.services import Grants
from pie_trio.config import ControlConfig
from pie_trio.errors import (
    BadArgumentError,
    CancelledError,
    ForbiddenError,
    OutOfEmbedsError,
    UnknownHandleError,
    UnsupportedError,
)
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, open_rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.application.host.clients import Client

PROMPT = [256, *b"Once upon"]


def embed(
    client: Client, tokens: list[int], numbers: list[int], first: int = 0
) -> None:
    """Put tokens into new embeds of these numbers, at positions from ``first``."""
    positions = list(range(first, first + len(tokens)))
    client.session.alloc_emb(0, numbers)
    client.session.embed_txt(0, tokens, positions, numbers)


async def next_token(client: Client, number: int) -> int:
    """Return the most likely token after an embed."""
    ticket = client.session.get_next_dist(0, number, 3)
    (result,) = await client.resolve(client.session.take_forward(ticket))
    ids: Any = result[1]
    assert len(ids) == 3
    return int(ids[0])


async def test_the_paper_s_four_calls_generate_what_one_fused_call_does() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        pages, inputs, output = [0, 1, 2, 3], list(range(len(PROMPT))), 100
        session.alloc_kvpage(0, pages)
        embed(client, PROMPT, inputs)
        session.alloc_emb(0, [output, 101])
        session.forward(0, [], inputs, pages, [output], None)
        found = [await next_token(client, output)]
        for step in range(3):
            session.embed_txt(0, [found[-1]], [len(PROMPT) + step], [101])
            session.forward(0, pages, [101], pages, [output], None)
            found.append(await next_token(client, output))
        assert found == fake_continuation(PROMPT, 4)


async def test_several_outputs_belong_to_the_last_inputs() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2])
        embed(client, PROMPT, list(range(10)))
        client.session.alloc_emb(0, [20, 21])
        client.session.forward(0, [], list(range(10)), [0, 1, 2], [20, 21], None)
        assert await next_token(client, 20) == fake_continuation(PROMPT[:-1], 1)[0]
        assert await next_token(client, 21) == fake_continuation(PROMPT, 1)[0]


async def test_without_output_pages_nothing_is_kept() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1, 2, 3])
        await client.run(PROMPT, pages=[0, 1, 2])
        embed(client, [65], [0], first=len(PROMPT))
        client.session.alloc_emb(0, [1])
        before = rig.pool.num_free
        for _ in range(2):
            client.session.forward(0, [0, 1, 2], [0], [], [1], None)
            expected = fake_continuation([*PROMPT, 65], 1)[0]
            assert await next_token(client, 1) == expected
        assert rig.pool.num_free == before


async def test_an_explicit_mask_counts_the_context_and_then_the_inputs() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0, 1])
        await client.run(b"junk", pages=[0])  # a whole page
        embed(client, [7, 8], [0, 1])
        client.session.alloc_emb(0, [2])
        rows = [[PAGE_SIZE, 1], [PAGE_SIZE, 2]]
        client.session.forward(0, [0], [0, 1], [1], [2], rows)
        assert await next_token(client, 2) == fake_continuation([7, 8], 1)[0]


async def test_a_hidden_state_can_be_fed_back() -> None:
    """What goes in is a state instead of a token; the engine's own tests say what it does."""
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1])
        embed(client, [7], [0])
        session.alloc_emb(0, [1, 2])
        session.forward(0, [], [0], [0], [1], None)
        session.forward(0, [0], [1], [1], [2], None)
        assert await next_token(client, 2) >= 0
        assert rig.engine.batch_sizes[:2] == [1, 1], "the second waits for the first"
        (request,) = rig.engine.batches[1].forwards
        assert request.input_slots is not None


async def test_an_embed_may_be_what_goes_in_and_what_comes_out() -> None:
    """What is read stays where it is for the step; the embed stands for the new state."""
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        (model,) = rig.models.values()
        session.alloc_kvpage(0, [0, 1])
        embed(client, [7], [0])
        num_free = model.embeds.num_free
        for _ in range(4):
            session.forward(0, [], [0], [0], [0], None)
        assert await next_token(client, 0) >= 0
        assert rig.engine.batch_sizes[:4] == [1] * 4, "each waits for the one before"
        for batch in rig.engine.batches[1:4]:
            (request,) = batch.forwards
            stored = request.outputs[0].store
            assert request.input_slots is not None
            assert stored is not None
            assert set(request.input_slots.tolist()).isdisjoint(stored.tolist())
        await client.synchronize()
        assert model.embeds.num_free == num_free - 1
        model.embeds.check()


async def test_projections_of_several_inferlets_share_a_batch() -> None:
    async with open_rig(gated=True) as rig:
        async with rig.open_client("a") as one, rig.open_client("b") as two:
            for client in (one, two):
                client.session.alloc_kvpage(0, [0])
                embed(client, [7], [0])
                client.session.alloc_emb(0, [1])
                client.session.forward(0, [], [0], [0], [1], None)
            await rig.gate.wait_started(1)
            tickets = [client.session.get_next_dist(0, 1, 1) for client in (one, two)]
            rig.gate.open()
            for client, ticket in zip((one, two), tickets, strict=True):
                await client.resolve(client.session.take_forward(ticket))
        assert [len(batch.projections) for batch in rig.engine.batches][-1] == 2


async def test_an_output_of_a_withdrawn_forward_is_never_seen() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        client.forward(b"x", pages=[0])
        await rig.gate.wait_started(1)
        embed(client, [7], [0], first=1)
        client.session.alloc_emb(0, [1])
        withdrawn = client.session.forward(0, [0], [0], [0], [1], None)
        ticket = client.session.get_next_dist(0, 1, 1)
        client.session.cancel(withdrawn)
        rig.gate.open()
        with pytest.raises(CancelledError):
            await client.resolve(client.session.take_forward(ticket))


async def test_embeds_are_checked() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0])
        session.alloc_emb(0, [0, 1])
        session.embed_txt(0, [7], [0], [0])
        refusals: list[tuple[type[Exception], str, Callable[[], Any]]] = [
            (
                UnknownHandleError,
                "embed 9",
                lambda: session.embed_txt(0, [1], [1], [9]),
            ),
            (
                BadArgumentError,
                "token 258",
                lambda: session.embed_txt(0, [258], [1], [0]),
            ),
            (
                BadArgumentError,
                "2 tokens, 1",
                lambda: session.embed_txt(0, [1, 2], [1], [0]),
            ),
            (
                BadArgumentError,
                "position",
                lambda: session.embed_txt(0, [1], [2**31], [0]),
            ),
            (BadArgumentError, "in use", lambda: session.alloc_emb(0, [0])),
            (UnknownHandleError, "embed 9", lambda: session.dealloc_emb(0, [9])),
            (
                BadArgumentError,
                "empty",
                lambda: session.forward(0, [], [1], [0], [], None),
            ),
            (
                BadArgumentError,
                "at least one",
                lambda: session.forward(0, [], [], [0], [], None),
            ),
            (
                BadArgumentError,
                "2 output",
                lambda: session.forward(0, [], [0], [0], [0, 1], None),
            ),
            (
                BadArgumentError,
                "no hidden state",
                lambda: session.get_next_dist(0, 0, 1),
            ),
            (
                BadArgumentError,
                "at least one entry",
                lambda: session.get_next_dist(0, 0, 0),
            ),
            (
                UnsupportedError,
                "no adapter 'x': it has none",
                lambda: session.forward_with_adapter(0, "x", [], [0], [0], [], None),
            ),
            (
                UnsupportedError,
                "'input-image'",
                lambda: session.num_embs_needed(0, 8, 8),
            ),
            (
                UnsupportedError,
                "'input-image'",
                lambda: session.embed_img(0, np.zeros(3, np.uint8), 0, [0]),
            ),
        ]
        for error, message, call in refusals:
            with pytest.raises(error, match=message):
                call()
        assert len(session.tickets) == 0


async def test_places_for_hidden_states_run_out_with_a_message() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        (model,) = rig.models.values()
        total = model.info.num_embeds
        client.session.alloc_kvpage(0, [0])
        embed(client, [7], [0])
        numbers = list(range(1, total + 2))
        client.session.alloc_emb(0, numbers)
        for number in numbers[:-1]:
            client.session.forward(0, [], [0], [], [number], None)
        with pytest.raises(OutOfEmbedsError, match=f"0 of {total}"):
            client.session.forward(0, [], [0], [], [numbers[-1]], None)
        await client.synchronize()
        client.session.dealloc_emb(0, [1])
        client.session.forward(0, [], [0], [], [numbers[-1]], None)


async def test_extras_come_where_they_were_asked_for_and_granted() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        rows = np.arange(2, dtype=np.int32)
        greedy = (0.0, 0, 1.0, 0.0, 0, 0, None)

        def ask(*extras: str) -> int:
            outputs = [(rows, greedy, 2, frozenset(extras))]
            tokens, positions = np.array([1, 2], np.int32), np.arange(2, dtype=np.int32)
            ticket: int = client.session.forward_text(
                0, (tokens, positions, [0], 0, None, outputs, "")
            )
            return ticket

        ticket = ask("logprobs", "entropy")
        (result,) = await client.resolve(client.session.take_forward(ticket))
        logprobs, entropy, logits, hidden = result[3]
        assert (len(logprobs), len(entropy), len(logits), len(hidden)) == (2, 2, 0, 0)
        with pytest.raises(ForbiddenError, match="grant `logits`"):
            ask("logits")
        assert client.session.launch.grants == Grants()


async def test_a_copy_moves_tokens_with_their_positions() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1, 2])
        await client.run([1, 2, 3, 4], pages=[0])
        ticket = session.copy_kvpage(0, 0, 1, 0, 2, 2)  # 1, 2 to the end of page 1
        await client.resolve(session.finish(ticket))
        token = await client.run([9], pages=[1, 2], start=4, positions=[2])
        assert [token] == fake_continuation([1, 2, 9], 1)


async def test_a_copy_into_a_shared_page_leaves_the_other_alone() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1])
        await client.run([1, 2, 3], pages=[0])
        session.fork_kvpage(0, [0], [5])
        session.copy_kvpage(0, 0, 5, 0, 3, 1)  # behind the three: token 1 again
        shared = await client.run([9], pages=[0, 1], start=3, positions=[3])
        assert [shared] == fake_continuation([1, 2, 3, 9], 1)
        for arguments in ((0, 5, 3, 0, 2), (0, 5, 0, 4, 1), (0, 5, 0, 0, 0)):
            with pytest.raises(BadArgumentError, match="do not lie within a page"):
                session.copy_kvpage(0, *arguments)


async def test_a_copy_of_what_was_withdrawn_is_refused() -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1, 2])
        client.forward(b"x", pages=[2])
        await rig.gate.wait_started(1)
        withdrawn = client.forward(b"abcd", pages=[0])
        ticket = session.copy_kvpage(0, 0, 1, 0, 0, 4)
        session.cancel(withdrawn)
        rig.gate.open()
        with pytest.raises(CancelledError):
            await client.resolve(session.finish(ticket))


async def test_masked_tokens_are_not_seen_by_this_handle_and_its_forks() -> None:
    async with open_rig() as rig, rig.open_client() as client:
        session = client.session
        session.alloc_kvpage(0, [0, 1, 2, 3])
        apart = [[0, 1], [1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]  # 1 and 2 see no 5 and 6
        await client.run([5, 1, 6, 2], pages=[0], positions=[0, 0, 1, 1], mask=apart)
        session.fork_kvpage(0, [0], [10])
        session.mask_kvpage(0, 0, [True, False, True, False])
        session.fork_kvpage(0, [0], [11])
        for page in (0, 11):
            token = await client.run([9], pages=[page, 1], start=4, positions=[2])
            assert [token] == fake_continuation([1, 2, 9], 1)
        whole = await client.run([9], pages=[10, 2], start=4, positions=[2])
        session.mask_kvpage(0, 0, [False] * PAGE_SIZE)
        again = await client.run([9], pages=[0, 3], start=4, positions=[2])
        assert whole == again
        with pytest.raises(BadArgumentError, match=f"expected {PAGE_SIZE}, got 1"):
            session.mask_kvpage(0, 0, [True])


async def test_priorities_go_first_inside_a_batch() -> None:
    control = ControlConfig(max_batch=1, policy="rendezvous:0.5,0")
    async with open_rig(gated=True, control=control) as rig:
        async with rig.open_client() as client:
            session = client.session
            session.create_queue(1, "")
            session.set_queue_priority(1, "high")
            session.alloc_kvpage(0, [0, 1, 2])
            client.forward([1], pages=[0])
            await rig.gate.wait_started(1)
            client.forward([2], pages=[1])
            client.forward([3], pages=[2], queue=1)
            rig.gate.open()
            await client.synchronize()
            first = [int(b.forwards[0].token_ids[0]) for b in rig.engine.batches]
            assert first == [1, 3, 2]
            assert session.service_id(0) == "fake"


async def test_calls_are_refused_by_the_name_of_the_trait_that_is_missing() -> None:
    async with open_rig() as rig:
        (model,) = rig.models.values()
        bare = replace(model, info=replace(model.info, traits=()))
        rig.services = replace(rig.services, models={"fake": bare})
        async with rig.open_client() as client:
            session = client.session
            calls: list[tuple[str, Callable[[], Any]]] = [
                ("allocate", lambda: session.alloc_kvpage(0, [0])),
                ("allocate", lambda: session.alloc_emb(0, [0])),
                ("forward", lambda: client.forward(b"x", pages=[0])),
                ("adapters", lambda: session.get_all_adapters(0)),
                ("tokenize", lambda: session.tokenize("", "x", False)),
                ("tokenize", lambda: session.detokenize("", [65])),
                ("tokenize", lambda: session.get_vocabs("")),
            ]
            for trait, call in calls:
                with pytest.raises(
                    UnsupportedError, match=f"lacks the trait '{trait}'"
                ):
                    call()
