"""Embeddings with OpenAI's own client."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import openai
import pytest

if TYPE_CHECKING:
    from tests.application.openai.conftest import Asking, OpenAsking


async def embed(asking: Asking, given: Any, **options: Any) -> Any:
    create: Any = asking.client.embeddings.create
    return await create(model=asking.engine.info.name, input=given, **options)


async def test_embeddings_have_length_one_and_depend_on_the_text(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        found = await embed(asking, ["one", "two", "one"])
        tokens = await embed(asking, [256, *b"one"], encoding_format="float")
        last = await embed(asking, "one", extra_body={"pooling": "last"})
    vectors = [one.embedding for one in found.data]
    assert [one.index for one in found.data] == [0, 1, 2]
    for vector in vectors:
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-5)
    assert vectors[0] == vectors[2] != vectors[1]
    assert tokens.data[0].embedding == pytest.approx(vectors[0], abs=1e-5)
    assert last.data[0].embedding != pytest.approx(vectors[0], abs=1e-3)
    assert found.usage.prompt_tokens == found.usage.total_tokens == 3 * 4


async def test_a_mean_is_of_all_states_however_many_are_fetched_at_once(
    open_asking: OpenAsking,
) -> None:
    text = "a long text of words " * 8  # more tokens than are fetched at once
    body = """
        queue, total = Queue(), 0.0
        tokens = queue.model.tokenize(text, special=True)
        pages = queue.alloc_kvpages(-(-len(tokens) // 16))
        wanted = Output(range(len(tokens)), hidden=True)
        (found,) = await queue.forward_text(tokens, pages=pages, outputs=[wanted])
        return [list(row) for row in found.hidden]
    """
    async with open_asking() as asking:
        found = await embed(asking, text, encoding_format="float")
        lines = "\n".join(line.removeprefix(" " * 8) for line in body.split("\n"))
        await asking.served.api.deploy("states", lines, parameters="text: str")
        states = (await asking.served.api.run("states", text=text))["result"]
    mean = np.mean(states, axis=0)
    assert len(states) == len(text) + 1
    assert found.data[0].embedding == pytest.approx(
        mean / np.linalg.norm(mean), abs=1e-5
    )


async def test_fewer_dimensions_are_the_first_ones_scaled(
    open_asking: OpenAsking,
) -> None:
    async with open_asking() as asking:
        whole = (await embed(asking, "one")).data[0].embedding
        short = (await embed(asking, "one", dimensions=2)).data[0].embedding
        with pytest.raises(openai.BadRequestError, match="has 4, got 5") as caught:
            await embed(asking, "one", dimensions=5)
    assert caught.value.param == "dimensions"
    assert short == pytest.approx(
        np.array(whole[:2]) / math.hypot(*whole[:2]), abs=1e-5
    )


async def test_an_empty_text_is_refused(open_asking: OpenAsking) -> None:
    async with open_asking() as asking:
        with pytest.raises(openai.BadRequestError, match="not empty"):
            await embed(asking, [])
        with pytest.raises(openai.BadRequestError, match="1 to 2048 tokens, got 3001"):
            await embed(asking, "x" * 3000)
