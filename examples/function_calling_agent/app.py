"""An agent that calls functions, with three optimisations to be switched one by one."""

from collections.abc import AsyncIterator
from contextlib import suppress

from inferlet_py import (
    Greedy,
    KvPage,
    NotFoundError,
    Output,
    Queue,
    ToolCall,
    ToolCallParser,
    http_post,
    inferlet,
    open_nursery,
)

DOCUMENTATION = """\
<|im_start|>system
You are Pie, a small helpful assistant.
Call tools as JSON when they help.
- calculator(expression: string): compute a number
- weather(city: string): the weather in a city
- lookup(key: string): the value of a key
- convert(value: number, from: string, to: string): change the unit of a value
- search(word: string): the items with a word in their name<|im_end|>
"""
QUESTIONS = (
    "What is the weather in Oslo? What is 12 * 7? Convert 12 km to m.",
    'What is the value of "red_kite"? Search for red. How is the weather in Lima today?',
)


class Transcript:
    """A text in KV pages, which goes on behind the pages of the documentation."""

    def __init__(self, queue: Queue, pages: list[KvPage]) -> None:
        self.queue, self.pages = queue, list(pages)
        self.slot = self.position = len(pages) * queue.kv_page_size

    async def read(self, tokens: list[int]) -> int:
        """Let the model read tokens, and return the one that it says next."""
        num_pages = -(-(self.slot + len(tokens)) // self.queue.kv_page_size)
        if num_pages > len(self.pages):
            self.pages += self.queue.alloc_kvpages(num_pages - len(self.pages))
        forward = self.queue.forward_text(
            tokens,
            pages=self.pages,
            start=self.slot,
            positions=range(self.position, self.position + len(tokens)),
            outputs=[Output(sampler=Greedy())],
        )
        self.slot, self.position = self.slot + len(tokens), self.position + len(tokens)
        return (await forward)[0].tokens[0]

    async def write(self, prompt: str, max_tokens: int = 256) -> AsyncIterator[str]:
        """Let the model read a prompt, and yield what it answers."""
        model = self.queue.model
        token = await self.read(model.tokenize(prompt))
        for _ in range(max_tokens):
            if token in model.info.eos_tokens:
                break
            yield model.detokenize([token])
            token = await self.read([token])

    def drop(self, pages: list[KvPage]) -> None:
        """Give pages back; all others stay at their positions."""
        for page in pages:
            self.pages.remove(page)
            page.close()
        self.slot -= len(pages) * self.queue.kv_page_size


async def read_documentation(queue: Queue, cache: bool) -> list[KvPage]:
    """Return the pages of the documentation, which is read only if nobody has kept it."""
    if cache:
        with suppress(NotFoundError):
            return queue.import_kvpages("functions")
    tokens = queue.model.tokenize(DOCUMENTATION)
    pages = queue.alloc_kvpages(-(-len(tokens) // queue.kv_page_size))
    await queue.forward_text(tokens, pages=pages)
    if cache:
        queue.export_kvpages(pages, "functions", persistent=True)
    return pages


@inferlet
async def main(
    questions: list[str] = list(QUESTIONS),  # noqa: B006 - never changed
    tools: str = "http://127.0.0.1:8099",
    cache: bool = False,
    overlap: bool = False,
    drop: bool = False,
) -> list[str]:
    """Answer questions one after the other; each takes up to four calls.

    Args:
        questions: As `What is the weather in Oslo? What is 12 * 7?`
        tools: Where they are; `pie run --allow-http` has to allow it.
        cache: Keep what the model has read of the documentation, also for later runs.
        overlap: Start a call as soon as it is written, while the model writes the next.
        drop: Give the documentation's pages back once the calls are written.
    """

    async def answer(question: str, queue: Queue) -> str:
        calls, results = list[ToolCall](), dict[int, str]()

        async def run(index: int) -> None:
            url, given = f"{tools}/{calls[index].name}", calls[index].arguments
            response = await http_post(url, json=list(given.values()))
            results[index] = response.text()

        documentation = await read_documentation(queue, cache)
        transcript, parser = Transcript(queue, documentation), ToolCallParser()
        asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        async with open_nursery() as nursery:
            async for piece in transcript.write(asked):
                for item in parser.add(piece):
                    if isinstance(item, ToolCall):
                        calls.append(item)
                        if overlap:
                            nursery.start_soon(run, len(calls) - 1)
            if drop:  # all but the first page, which the model leans on
                transcript.drop(documentation[1:])
        if not overlap:
            for index in range(len(calls)):
                await run(index)
        told = [f"<|im_start|>tool\n{results[i]}<|im_end|>\n" for i in sorted(results)]
        prompt = f"<|im_end|>\n{''.join(told)}<|im_start|>assistant\n"
        said = "".join([piece async for piece in transcript.write(prompt)])
        transcript.drop(list(transcript.pages))
        return said

    with Queue() as queue:
        return [await answer(question, queue) for question in questions]
