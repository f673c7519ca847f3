"""Random exports and imports, which come to the same on one engine and on several."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pie_trio.application.services import Grants
from pie_trio.errors import InferletError
from tests.application.host.clients import Client, open_rig
from tests.application.host.test_exports import export
from tests.application.host.test_replicas import COPIED, bring, client_on

if TYPE_CHECKING:
    from collections.abc import Sequence

OWNERS = ("ann", "ann", "bob")
PROMPTS = [[256, *text] for text in (b"Once upon", b"A fox and", b"In a wood")]
PAGES = [0, 1, 2]
NAMES = st.sampled_from(["a", "b", "ann/a", "bob/a", "bob/b"])
PERMISSIONS = st.sampled_from([("owner", None), ("published", None)])
STEPS = st.lists(
    st.tuples(
        st.integers(0, len(OWNERS) - 1),
        st.one_of(
            st.tuples(st.just("export"), NAMES, PERMISSIONS, st.booleans()),
            st.tuples(st.just("import"), NAMES),
            st.tuples(st.just("import"), NAMES),
            st.tuples(st.just("unexport"), NAMES),
            st.tuples(st.just("look"), NAMES),
            st.tuples(st.just("list")),
        ),
    ),
    max_size=25,
)
Step = tuple[int, tuple[Any, ...]]


async def do(client: Client, number: int, step: tuple[Any, ...]) -> Any:
    """Do one step of an inferlet; return what comes of it."""
    kind, *rest = step
    session = client.session
    try:
        if kind == "export":
            name, permission, is_persistent = rest
            return export(
                client,
                name,
                persistent=is_persistent,
                permission=permission,
                metadata=bytes([number]),
            )
        if kind == "import":
            await bring(client, *rest)
            token = await client.run([65], pages=COPIED, start=len(PROMPTS[0]))
            session.dealloc_kvpage(0, COPIED)
            return token
        if kind == "unexport":
            return await client.resolve(session.unexport_kvpage(0, *rest))
        if kind == "look":
            return plain(session.get_export(0, *rest))
        return [plain(info) for info in session.list_exports(0, "")]
    except InferletError as error:
        return error.code, str(error)


def plain(info: tuple[Any, ...]) -> list[Any]:
    """Return what is known of an export, comparable."""
    return [bytes(one) if hasattr(one, "tobytes") else one for one in info]


async def outcomes(steps: Sequence[Step], places: Sequence[int]) -> list[Any]:
    """Run the steps with each inferlet on one replica; return what comes of each."""
    names = ("fake",) * (max(places) + 1)
    async with open_rig(names=names, num_pages=64) as rig:
        async with AsyncExitStack() as stack:
            clients = list[Client]()
            for number, (owner, place) in enumerate(zip(OWNERS, places, strict=True)):
                client = await stack.enter_async_context(
                    client_on(rig, place, owner, Grants(publish=True), number)
                )
                client.session.alloc_kvpage(0, PAGES)
                await client.run(PROMPTS[number], pages=PAGES)
                clients.append(client)
            return [await do(clients[number], number, step) for number, step in steps]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(STEPS, st.tuples(*[st.integers(0, 2)] * len(OWNERS)))
def test_it_does_not_matter_where_inferlets_are(
    steps: Sequence[Step], places: Sequence[int]
) -> None:
    alone = trio.run(outcomes, steps, [0] * len(OWNERS))
    assert trio.run(outcomes, steps, places) == alone
