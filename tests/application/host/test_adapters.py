"""Adapters through a session: forwards, streams, and what comes and goes meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.errors import AdapterError, UnsupportedError
from tests.application.host.clients import GREEDY, open_rig
from tests.application.host.test_decode import GREEDY as GREEDY_STREAM
from tests.application.host.test_decode import read_all

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.application.host.clients import Client

PROMPT = [256, *b"Once"]
COUNT = 6


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    """Two adapters; the fake engine wants no more than different files."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
        (tmp_path / name / "adapter_model.safetensors").write_text(name)
    return [tmp_path / "one", tmp_path / "two"]


def submit(
    client: Client, tokens: Sequence[int], page: int, start: int, adapter: str
) -> int:
    ticket: int = client.session.forward_text(
        0,
        (
            np.array(tokens, np.int32),
            np.arange(start, start + len(tokens), dtype=np.int32),
            [page, page + 1, page + 2],
            start,
            None,
            client.outputs([len(tokens) - 1], GREEDY, 0),
            adapter,
        ),
    )
    return ticket


async def generate(client: Client, page: int, adapter: str) -> list[int]:
    client.session.alloc_kvpage(0, [page, page + 1, page + 2])
    found, tokens, start = list[int](), PROMPT, 0
    for _ in range(COUNT):
        (token,) = await client.take(submit(client, tokens, page, start, adapter))
        found.append(token)
        start, tokens = start + len(tokens), [token]
    return found


def stream(client: Client, number: int, page: int, adapter: str) -> None:
    client.session.alloc_kvpage(0, [page, page + 1, page + 2])
    request: tuple[Any, ...] = (
        np.array(PROMPT, np.int32),
        np.arange(len(PROMPT), dtype=np.int32),
        [page, page + 1, page + 2],
        0,
        GREEDY_STREAM,
        COUNT,
        [],
        [],
        False,
        1000,
        adapter,
    )
    client.session.start_stream(0, number, request)


async def test_a_stream_samples_what_stepping_with_its_adapter_does(
    directories: list[Path],
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        for directory in directories:
            rig.engine.load_adapter(directory.name, directory)
            await rig.models["fake"].replicas.load_adapter(
                f"x{directory.name}", directory
            )
        stepped = [
            await generate(client, 3 * i, name)
            for i, name in enumerate(("", "one", "two"))
        ]
        assert len({*map(tuple, stepped)}) == 3
        for number, name in enumerate(("", "one", "two"), start=1):
            stream(client, number, 10 * number, name)
        for number in (1, 2, 3):
            tokens, _, _ = await read_all(client, number)
            assert tokens == stepped[number - 1]
        assert max(rig.engine.batch_sizes) == 3


async def test_forwards_of_embeds_take_an_adapter(directories: list[Path]) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        await rig.models["fake"].replicas.load_adapter("one", directories[0])
        session = client.session
        found = list[int]()
        for page, adapter in ((0, ""), (1, "one"), (2, "one")):
            session.alloc_kvpage(0, [page])
            inputs, output = [10 * page, 10 * page + 1], 100 + page
            session.alloc_emb(0, [*inputs, output])
            session.embed_txt(0, [65, 66], [0, 1], inputs)
            places: tuple[Any, ...] = ([], inputs, [page], [output], None)
            if adapter:
                session.forward_with_adapter(0, adapter, *places)
            else:
                session.forward(0, *places)
            ticket = session.get_next_dist(0, output, 1)
            (result,) = await client.resolve(session.take_forward(ticket))
            found.append(int(result[1][0]))
        assert found[0] != found[1] == found[2]


async def test_guests_see_the_adapters_that_are_loaded_now(
    directories: list[Path],
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        model, session = rig.models["fake"], client.session
        assert session.get_all_adapters(0) == []
        await model.replicas.load_adapter("one", directories[0])
        await model.replicas.load_adapter("two", directories[1])
        assert session.get_all_adapters(0) == ["one", "two"]
        model.replicas.drop_adapter("one")
        assert session.get_all_adapters(0) == ["two"]
        session.alloc_kvpage(0, [0, 1, 2])
        with pytest.raises(UnsupportedError, match="no adapter 'one': it has two"):
            submit(client, PROMPT, 0, 0, "one")
        with pytest.raises(AdapterError, match="from other files before"):
            await model.replicas.load_adapter("one", directories[1])
        with pytest.raises(AdapterError, match="No such file"):
            await model.replicas.load_adapter("three", directories[0] / "nothing")
        assert session.get_all_adapters(0) == ["two"]


async def test_what_uses_an_adapter_keeps_it(directories: list[Path]) -> None:
    async with open_rig(gated=True) as rig, rig.open_client() as client:
        model = rig.models["fake"]
        await model.replicas.load_adapter("one", directories[0])
        await model.replicas.load_adapter("two", directories[1])
        client.session.alloc_kvpage(0, [0, 1, 2])
        ticket = submit(client, PROMPT, 0, 0, "one")
        for is_running in (False, True):
            if is_running:
                await rig.gate.wait_started(1)
            with pytest.raises(AdapterError, match="one is in use"):
                model.replicas.drop_adapter("one")
        model.replicas.drop_adapter("two")
        rig.gate.open()
        await client.take(ticket)
        model.replicas.drop_adapter("one")
        assert client.session.get_all_adapters(0) == []


async def test_a_stream_keeps_its_adapter_until_it_ends(
    directories: list[Path],
) -> None:
    async with open_rig() as rig, rig.open_client() as client:
        model = rig.models["fake"]
        await model.replicas.load_adapter("one", directories[0])
        stream(client, 1, 0, "one")
        with pytest.raises(AdapterError, match="one is in use"):
            model.replicas.drop_adapter("one")
        await read_all(client, 1)
        model.replicas.drop_adapter("one")
