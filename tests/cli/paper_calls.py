"""Every call of the paper, as an inferlet writes it; the test runs it in both modes."""

from __future__ import annotations

from inferlet_py import (
    BadArgumentError,
    NotFoundError,
    Output,
    Queue,
    TopP,
    UnsupportedError,
    available_models,
    available_traits,
    get_model,
    inferlet,
    models_with_traits,
)


@inferlet
async def main(prompt: str = "Once upon a time", count: int = 8) -> dict[str, object]:
    """Generate with embeds, forwards and distributions, then with one fused call a token."""
    model = get_model()
    tokens = model.tokenize(prompt, special=True)
    with Queue(priority="high") as queue:
        found = await generate_with_embeds(queue, tokens, count)
        fused = await generate_fused(queue, tokens, count)
        masked = await generate_behind_a_mask(queue, tokens, count)
        forked = await generate_from_an_export(queue, tokens, count)
        extras = await look_at_extras(queue, tokens)
        await refuse(queue)
        service = queue.service_id()
        explained = queue.debug_query("explain")
    return {
        "embeds": found,
        "fused": fused,
        "masked": masked,
        "forked": forked,
        "extras": extras,
        "service": service == model.info.service_id,
        "traits": "forward" in available_traits()
        and models_with_traits(["forward"]) == available_models(),
        "explained": bool(explained),
    }


def num_pages(queue: Queue, num_tokens: int) -> int:
    return -(-num_tokens // queue.kv_page_size)


async def generate_with_embeds(
    queue: Queue, tokens: list[int], count: int
) -> list[int]:
    pages = queue.alloc_kvpages(num_pages(queue, len(tokens) + count))
    inputs = queue.alloc_embs(len(tokens))
    (output,) = queue.alloc_embs(1)
    queue.embed_txt(tokens, range(len(tokens)), inputs)
    queue.forward(iemb=inputs, okv=pages, oemb=[output])
    found: list[int] = []
    for position in range(len(tokens), len(tokens) + count):
        found.append((await queue.get_next_dist(output, 4)).argmax())
        queue.embed_txt([found[-1]], [position], inputs[:1])
        queue.forward(ikv=pages, iemb=inputs[:1], okv=pages, oemb=[output])
    await queue.synchronize()
    for page in pages:
        page.close()
    for embed in (*inputs, output):
        embed.close()
    return found


async def generate_fused(queue: Queue, tokens: list[int], count: int) -> list[int]:
    pages = queue.alloc_kvpages(num_pages(queue, len(tokens) + count))
    found: list[int] = []
    new, start = tokens, 0
    for _ in range(count):
        (output,) = await queue.forward_text(
            new, pages=pages, start=start, outputs=[Output(top=1)]
        )
        start += len(new)
        new = [output.dists[0].argmax()]
        found += new
    for page in pages:
        page.close()
    return found


async def generate_behind_a_mask(
    queue: Queue, tokens: list[int], count: int
) -> list[int]:
    """Write junk before the prompt, and hide it: once by a mask, then token by token."""
    size = queue.kv_page_size
    (junk,) = queue.alloc_kvpages(1)
    pages = queue.alloc_kvpages(num_pages(queue, len(tokens) + count))
    rows = [
        [False] * size + [i <= j for i in range(len(tokens))]
        for j in range(len(tokens))
    ]
    queue.forward_text([1] * size, pages=[junk])
    (output,) = await queue.forward_text(
        tokens,
        pages=[junk, *pages],
        start=size,
        positions=range(len(tokens)),
        mask=rows,
        outputs=[Output(top=1)],
    )
    queue.mask_kvpage(junk, [True] * size)
    found = [output.dists[0].argmax()]
    for step in range(count - 1):
        (output,) = await queue.forward_text(
            found[-1:],
            pages=[junk, *pages],
            start=size + len(tokens) + step,
            positions=[len(tokens) + step],
            outputs=[Output(top=1)],
        )
        found.append(output.dists[0].argmax())
    return found


async def generate_from_an_export(
    queue: Queue, tokens: list[int], count: int
) -> list[int]:
    """Export the prompt's pages, go on in an import, in a fork, and in a copy."""
    size = queue.kv_page_size
    pages = queue.alloc_kvpages(num_pages(queue, len(tokens) + count))
    await queue.forward_text(tokens, pages=pages)
    queue.export_kvpages(pages, "prompt", metadata=b"its tokens", seconds_to_live=60)
    assert queue.get_export("prompt").metadata == b"its tokens"
    assert [info.name for info in queue.list_exports("pro")] == ["prompt"]
    imported = queue.import_kvpages("prompt")
    forked = queue.fork_kvpages(imported)
    copied = queue.alloc_kvpages(len(pages))
    for source, target in zip(forked, copied, strict=True):
        queue.copy_kvpage(source, target, count=size)
    queue.unexport_kvpages("prompt")
    results: list[list[int]] = []
    for context in (imported, forked, copied):
        found: list[int] = []
        new, start = tokens[-1:], len(tokens) - 1
        for _ in range(count):
            (output,) = await queue.forward_text(
                new, pages=context, start=start, outputs=[Output(top=1)]
            )
            start += 1
            new = [output.dists[0].argmax()]
            found += new
        results.append(found)
    assert results[0] == results[1] == results[2], results
    return results[0]


async def look_at_extras(queue: Queue, tokens: list[int]) -> dict[str, object]:
    """Ask for all that there is, for several rows and with several samplers."""
    pages = queue.alloc_kvpages(num_pages(queue, len(tokens)))
    everything = Output(
        rows=[0, len(tokens) - 1],
        sampler=TopP(0.9, seed=1),
        top=2,
        logprobs=True,
        entropy=True,
        logits=True,
        hidden=True,
    )
    first, second = await queue.forward_text(
        tokens, pages=pages, outputs=[everything, Output(sampler=TopP(1.0, seed=2))]
    )
    info = queue.model.info
    assert len(first.tokens) == len(first.dists) == len(first.logprobs) == 2
    assert [len(row) for row in first.logits] == [info.vocab_size] * 2
    assert [len(row) for row in first.hidden] == [info.hidden_size] * 2
    assert all(value >= 0 for value in first.entropy)
    assert all(value <= 0 for value in first.logprobs)
    best = max(range(info.vocab_size), key=lambda token: first.logits[1][token])
    assert first.dists[1].argmax() == best
    inputs, outputs = queue.alloc_embs(len(tokens)), queue.alloc_embs(2)
    queue.embed_txt(tokens, range(len(tokens)), inputs)
    queue.forward(iemb=inputs, oemb=outputs)
    (projected,) = await queue.project(outputs, [Output(rows=[0, 1], top=2)])
    assert projected.dists[1].argmax() == first.dists[1].argmax()
    return {"tokens": list(first.tokens), "second": list(second.tokens)}


async def refuse(queue: Queue) -> None:
    """What the model lacks, and what is not there, is an error that says so."""
    (embed,) = queue.alloc_embs(1)
    for call, error in (
        (lambda: queue.forward_text([1], pages=[], adapter="x"), UnsupportedError),
        (lambda: queue.num_embs_needed(8, 8), UnsupportedError),
        (lambda: queue.embed_img(b"", [embed]), UnsupportedError),
        (lambda: queue.import_kvpages("nothing"), NotFoundError),
        (lambda: queue.get_next_dist(embed), BadArgumentError),
        (lambda: queue.set_priority("urgent"), BadArgumentError),  # type: ignore[arg-type]
    ):
        try:
            call()
        except error:
            continue
        raise AssertionError(f"expected {error.__name__}")
    command = queue.synchronize()
    command.cancel()
