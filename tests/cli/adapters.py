"""Runs prompts with each adapter of the model in every way that there is. See test_adapters.py."""

from typing import Any

from inferlet_py import (
    Context,
    Output,
    Queue,
    Sampler,
    UnsupportedError,
    inferlet,
    open_nursery,
)

PROMPT = "Once upon a time there was a dog"
COUNT = 8


async def stream(adapter: str, *, reuse: bool = False) -> list[int]:
    async with Context(adapter=adapter) as ctx:
        assert ctx.adapter == adapter
        await ctx.fill(PROMPT, reuse=reuse)
        return await ctx.generate(max_tokens=COUNT, stop_tokens=[]).tokens()


async def step(adapter: str) -> list[int]:
    """The same by single calls, on a fork of an exported context."""
    async with Context(adapter=adapter) as ctx:
        await ctx.fill(PROMPT)
        ctx.export(f"context-{adapter}")
        async with Context.from_export(f"context-{adapter}") as found:
            assert found.adapter == adapter
            async with found.fork() as fork:
                tokens = list[int]()
                for _ in range(COUNT):
                    token = await fork.sample(Sampler(temperature=0.0))
                    fork.append([token])
                    tokens.append(token)
                return tokens


async def call(adapter: str, tokens: list[int]) -> list[int]:
    """The first token by the paper's calls: with a fused forward, and with embeds."""
    with Queue() as queue:
        pages = queue.alloc_kvpages(8)
        (fused,) = await queue.forward_text(
            tokens,
            pages=pages[:4],
            outputs=[Output(rows=[len(tokens) - 1], top=1)],
            adapter=adapter,
        )
        inputs, outputs = queue.alloc_embs(len(tokens)), queue.alloc_embs(1)
        queue.embed_txt(tokens, range(len(tokens)), inputs)
        queue.forward(iemb=inputs, okv=pages[4:], oemb=outputs, adapter=adapter)
        dist = await queue.get_next_dist(outputs[0])
        return [fused.dists[0].argmax(), dist.argmax()]


@inferlet
async def main() -> dict[str, Any]:
    with Queue() as queue:
        names = queue.get_all_adapters()
    adapters = ["", *names]
    streams = [list[int]() for _ in adapters]

    async def stream_to(index: int) -> None:
        streams[index] = await stream(adapters[index])

    async with open_nursery() as nursery:
        for index in range(len(adapters)):
            nursery.start_soon(stream_to, index)
    with Context() as ctx:
        tokens = ctx.model.tokenize(PROMPT, special=True)
    try:
        await stream("nobody")
    except UnsupportedError as error:
        refusal = str(error)
    return {
        "names": names,
        "streams": streams,
        # Twice, and after others have offered the pages of the same text.
        "reused": [await stream(a, reuse=True) for a in adapters * 2],
        "steps": [await step(adapter) for adapter in adapters],
        "calls": [await call(adapter, tokens) for adapter in adapters],
        "refusal": refusal,
    }
