from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.errors import InferletError, OutOfPagesError
from pie_trio.inference.fake import fake_continuation
from tests.application.host.clients import PAGE_SIZE, Rig, open_rig
from tests.application.host.programs import (
    POOL_PAGES,
    PROGRAMS,
    Program,
    run_on,
    run_plainly,
)

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session

CONFIGS = st.builds(
    ControlConfig,
    max_batch=st.sampled_from([1, 2, 256]),
    max_batch_tokens=st.sampled_from([6, 12, 2048]),
    policy=st.just("rendezvous:0.5,0"),
)


async def check_program(program: Program, control: ControlConfig) -> None:
    expected = run_plainly(program)
    for is_at_once in (False, True):
        async with open_rig(num_pages=POOL_PAGES, control=control) as rig:
            async with rig.open_client() as client:
                found = await run_on(client, program, is_at_once=is_at_once)
        assert found == expected


@given(PROGRAMS, CONFIGS)
async def test_a_program_samples_the_same_tokens_however_its_calls_are_batched(
    program: Program, control: ControlConfig
) -> None:
    await check_program(program, control)


@pytest.mark.slow
@settings(max_examples=5000)
@given(PROGRAMS, CONFIGS)
async def test_many_programs_sample_the_same_tokens_however_they_are_batched(
    program: Program, control: ControlConfig
) -> None:
    await check_program(program, control)


# What the wire can carry: any u32, read as int32 where the engine wants it; any float32.
U32 = st.integers(0, 2**32 - 1)
FLOATS = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0])


def near(*usual: int) -> st.SearchStrategy[int]:
    return st.sampled_from(usual) | st.sampled_from(usual) | U32


def int32s(items: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return st.lists(items, max_size=5).map(
        lambda values: np.array(values, np.uint32).astype(np.int32)
    )


TOKENS = st.just(np.array([1, 2], np.int32)) | int32s(near(0, 97, 257, 258))
POSITIONS = st.just(np.array([3, 4], np.int32)) | int32s(near(0, 1, 5, 2**31 - 1))
PAGES = st.sampled_from([[0, 1], [0, 1], [0, 2], [3, 4], [0, 5]]) | st.lists(
    near(0, 1, 2, 3, 4, 5, 6), max_size=5
)
MASKS = st.none() | st.lists(st.lists(near(0, 1, 2, 3, 6), max_size=5), max_size=3)
SAMPLERS = st.none() | st.tuples(
    FLOATS,
    near(0, 1, 300),
    FLOATS,
    FLOATS,
    st.integers(0, 2**64 - 1),
    st.sampled_from([0, 0, 0, 1]),
    st.none() | st.tuples(FLOATS, FLOATS, FLOATS, FLOATS, FLOATS),
)
EXTRAS = st.frozensets(
    st.sampled_from(["logprobs", "entropy", "logits", "hidden"]), max_size=2
)
OUTPUTS = st.lists(
    st.tuples(
        st.just(np.array([1], np.int32)) | int32s(near(0, 1)),
        SAMPLERS,
        near(0, 1, 258, 259),
        EXTRAS,
    ),
    max_size=2,
)
REQUESTS = st.tuples(
    TOKENS,
    POSITIONS,
    PAGES,
    near(0, 2, 5),
    MASKS,
    OUTPUTS,
    st.sampled_from(["", "", "", "none"]),
)


def state_of(rig: Rig, session: Session) -> Any:
    """Return everything that a refused call must leave alone."""
    pool = rig.pool
    pool.check()
    table = session.pages["fake"]
    return (
        [pool.num_owners(page) for page in range(len(pool.physical))],
        pool.positions.tolist(),
        pool.num_free,
        {handle: table.get(handle) for handle in table},
        list(session.queues),
        len(session.tickets),
        rig.models["fake"].batcher.num_unfinished,
    )


@given(near(0, 9), REQUESTS, st.booleans())
async def test_a_forward_is_either_refused_with_nothing_changed_or_runs(
    queue: int, request: Any, is_full: bool
) -> None:
    """What the session lets through, the engine must not refuse: that fails a whole batch."""
    control = ControlConfig(max_batch_tokens=4, policy="rendezvous:0.5,0")
    async with open_rig(num_pages=6, control=control) as rig:
        async with rig.open_client() as client:
            session = client.session
            session.alloc_kvpage(0, [0, 1, 2, 3])
            await client.run(b"abc", pages=[0])
            session.fork_kvpage(0, [0, 2], [4, 5])
            if is_full:
                session.alloc_kvpage(0, list(range(10, 16)))
                for page in range(10, 15):
                    await client.run(b"x", pages=[page])
            before = state_of(rig, session)
            try:
                ticket = session.forward_text(queue, request)
            except InferletError:
                assert state_of(rig, session) == before
                return
            try:
                results = await client.resolve(session.take_forward(ticket))
            except OutOfPagesError:
                assert is_full
                return
            for (rows, sampler, top_k, _), result in zip(
                request[5], results, strict=True
            ):
                assert len(result[0]) == (0 if sampler is None else len(rows))
                assert len(result[1]) == len(rows) * top_k


HANDLES = st.lists(near(0, 1, 2, 3), max_size=4)
CALLS = st.one_of(
    st.tuples(st.just("create_queue"), st.tuples(near(0, 1), st.sampled_from("ab"))),
    st.tuples(st.just("destroy_queue"), st.tuples(near(0, 1))),
    st.tuples(st.just("synchronize"), st.tuples(near(0, 1))),
    st.tuples(st.just("alloc_kvpage"), st.tuples(near(0, 1), HANDLES)),
    st.tuples(st.just("dealloc_kvpage"), st.tuples(near(0, 1), HANDLES)),
    st.tuples(st.just("fork_kvpage"), st.tuples(near(0, 1), HANDLES, HANDLES)),
    st.tuples(st.just("forward_text"), st.tuples(near(0, 1), REQUESTS)),
    st.tuples(
        st.just("copy_kvpage"),
        st.tuples(near(0, 1), *[near(0, 1, 2, 3)] * 5),
    ),
    st.tuples(st.just("alloc_emb"), st.tuples(near(0, 1), HANDLES)),
    st.tuples(st.just("dealloc_emb"), st.tuples(near(0, 1), HANDLES)),
    st.tuples(st.just("embed_txt"), st.tuples(near(0, 1), HANDLES, HANDLES, HANDLES)),
    st.tuples(
        st.just("forward"),
        st.tuples(near(0, 1), HANDLES, HANDLES, HANDLES, HANDLES, MASKS),
    ),
    st.tuples(
        st.just("get_next_dist"), st.tuples(near(0, 1), near(0, 1, 2), near(0, 1, 5))
    ),
    st.tuples(
        st.just("mask_kvpage"),
        st.tuples(
            near(0, 1),
            near(0, 1, 2),
            st.lists(st.booleans(), min_size=PAGE_SIZE, max_size=PAGE_SIZE),
        ),
    ),
    st.tuples(
        st.just("export_kvpage"),
        st.tuples(
            near(0, 1),
            HANDLES,
            st.sampled_from(["", "x", "y"]),
            st.booleans(),
            st.sampled_from([("owner", None), ("users", ["z"]), ("published", None)]),
            st.none() | FLOATS,
            st.just(np.zeros(3, np.uint8)),
        ),
    ),
    st.tuples(
        st.just("import_kvpage"),
        st.tuples(near(0, 1), st.sampled_from(["x", "y", "local/x"]), HANDLES),
    ),
    st.tuples(st.just("unexport_kvpage"), st.tuples(near(0, 1), st.sampled_from("xy"))),
    st.tuples(st.just("set_queue_priority"), st.tuples(near(0, 1), st.just("high"))),
    st.tuples(st.just("suspend_pages"), st.tuples()),
    st.tuples(st.just("memory_pressure"), st.tuples()),
    st.tuples(st.just("release"), st.tuples(near(1, 2, 3))),
    st.tuples(st.just("cancel"), st.tuples(near(1, 2, 3))),
    st.tuples(st.just("send"), st.tuples(st.sampled_from(["a", b"b"]))),
    st.tuples(st.just("wait"), st.tuples(HANDLES, st.none() | FLOATS)),
    st.tuples(st.just("finish"), st.tuples(near(1, 2, 3))),
    st.tuples(st.just("take_forward"), st.tuples(near(1, 2, 3))),
    st.tuples(st.just("get_model"), st.tuples(st.sampled_from(["", "a", "c"]))),
    st.tuples(st.just("detokenize"), st.tuples(st.just("a"), st.lists(near(0, 257)))),
)


@given(st.lists(CALLS, max_size=25), st.booleans())
async def test_no_calls_break_the_session_or_lose_a_page(
    calls: list[tuple[str, tuple[Any, ...]]], is_held: bool
) -> None:
    limits = InstanceLimits(max_in_flight=6, max_pages=6, max_queues=3, max_unread=2)
    control = ControlConfig(max_batch_tokens=4, policy="rendezvous:0.5,0")
    async with open_rig(
        names=["a", "b"], num_pages=4, control=control, gated=is_held, limits=limits
    ) as rig:
        session = rig.make_session()
        try:
            for name, arguments in calls:
                with suppress(InferletError):
                    getattr(session, name)(*arguments)
                for model in rig.models.values():
                    model.pool.check()
        finally:
            rig.gate.open()
            await session.close()


async def test_a_context_that_is_not_full_keeps_its_last_page_private() -> None:
    """One shrunk example of the kind that the random programs find."""
    async with open_rig() as rig, rig.open_client() as client:
        client.session.alloc_kvpage(0, [0])
        client.forward(b"a", pages=[0])
        client.session.fork_kvpage(0, [0], [1])
        for page, second in ((0, b"b"), (1, b"c")):
            client.forward(second, pages=[page], start=1)
        for page, text in ((0, b"abd"), (1, b"acd")):
            found = await client.run(b"d", pages=[page], start=2)
            assert [found] == fake_continuation(text, 1)
