"""Completions of texts with OpenAI's own client."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import pytest

from pie_trio.inference.fake import FakeEngine
from pie_trio.inference.scripted import ScriptedEngine

if TYPE_CHECKING:
    from tests.application.openai.conftest import Asking, OpenAsking

# OpenAI's client leaves generators of its own to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Async generator '(openai|httpx2|httpcore2):ResourceWarning"
)


async def complete(asking: Asking, prompt: Any, **options: Any) -> Any:
    create: Any = asking.client.completions.create
    model = asking.engine.info.name
    return await create(model=model, prompt=prompt, **options)


async def test_texts_and_tokens_go_on_alike(open_asking: OpenAsking) -> None:
    engine = ScriptedEngine({"one, two": ", three", "a, b": ", c"})
    texts = ["one, two", "a, b"]
    tokens = [[256, *text.encode()] for text in texts]
    async with open_asking(engine) as asking:
        for prompt in (texts, tokens):
            found = await complete(asking, prompt, temperature=0, n=2)
            assert [c.text for c in found.choices] == [*[", three"] * 2, *[", c"] * 2]
            assert [c.index for c in found.choices] == [0, 1, 2, 3]
            assert {c.finish_reason for c in found.choices} == {"stop"}
            assert found.usage.prompt_tokens == sum(map(len, tokens))
            assert found.usage.completion_tokens == 2 * len(", three, c")
        one = await complete(asking, "a, b", temperature=0, echo=True)
        assert one.choices[0].text == "a, b, c"
        same = await complete(asking, tokens[1], temperature=0)
        assert same.choices[0].text == ", c"


async def test_sixteen_tokens_are_usual(open_asking: OpenAsking) -> None:
    engine = ScriptedEngine({"x": "y" * 100})
    async with open_asking(engine) as asking:
        found = await complete(asking, "x", temperature=0)
        assert found.choices[0].text == "y" * 16
        assert found.choices[0].finish_reason == "length"
        nothing = await complete(asking, "x", max_tokens=0, echo=True)
        assert nothing.choices[0].text == "x"
        assert nothing.usage.completion_tokens == 0


async def test_log_probabilities_stand_beside_their_tokens(
    open_asking: OpenAsking,
) -> None:
    async with open_asking(ScriptedEngine({"x": "abc"})) as asking:
        found = await complete(asking, "x", temperature=0, logprobs=2)
        stream = await complete(asking, "x", temperature=0, logprobs=2, stream=True)
        async with stream, aclosing(aiter(stream)) as chunks:
            streamed = [chunk async for chunk in chunks]
    (choice,) = found.choices
    told = choice.logprobs
    assert told.tokens == ["a", "b", "c"]
    assert told.text_offset == [0, 1, 2]
    assert all(p > -0.01 for p in told.token_logprobs)
    assert [max(top, key=top.get) for top in told.top_logprobs] == told.tokens
    assert all(len(top) == 2 for top in told.top_logprobs)
    assert "".join(chunk.choices[0].text for chunk in streamed) == "abc"
    parts = [c.choices[0].logprobs for c in streamed if c.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == told.tokens
    assert [at for part in parts for at in part.text_offset] == told.text_offset
    assert streamed[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
async def test_no_alternatives_are_log_probabilities_too(
    open_asking: OpenAsking, stream: bool
) -> None:
    async with open_asking(ScriptedEngine({"x": "abc"})) as asking:
        found = await complete(asking, "x", temperature=0, logprobs=0, stream=stream)
        if stream:
            async with found, aclosing(aiter(found)) as chunks:
                told = [chunk.choices[0].logprobs async for chunk in chunks]
        else:
            told = [found.choices[0].logprobs]
    found = [one for part in told if part for one in part.token_logprobs]
    assert len(found) == 3
    assert all(p > -0.01 for p in found)


async def test_choices_of_a_prompt_compute_it_once(open_asking: OpenAsking) -> None:
    engine = FakeEngine(num_pages=512)
    async with open_asking(engine) as asking:
        found = await complete(asking, "x" * 200, n=4, max_tokens=3, seed=1)
        again = await complete(asking, "x" * 200, n=4, max_tokens=3, seed=1)
    rows = [len(f.token_ids) for batch in engine.batches for f in batch.forwards]
    assert sum(rows) <= found.usage.prompt_tokens + 2 * 16 + 2 * 4 * 3
    assert [c.text for c in found.choices] == [c.text for c in again.choices]
    cached = again.usage.prompt_tokens_details.cached_tokens
    assert cached == 200 // 16 * 16
