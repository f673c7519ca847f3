"""What stands around a fragment of a page, so that it is a program that runs on pie-tiny."""

from __future__ import annotations

import json
import textwrap

from tests.application.outgoing.servers import Reply, Seen
from tests.application.run.test_mcp import McpServer

__all__ = ["HOSTS", "OTHERS", "answer_requests", "make_program"]

HOSTS = ("api.example.com", "weather.example", "tools.example")
"""Of the pages; they are served on loopback."""

PROMPT = """<|im_start|>user
Extract the data as JSON.
Schema: {"name": "string", "pets": "strings"}
Text: Anna has a cat.<|im_end|>
<|im_start|>assistant
"""
PROGRAM = """
import json
from dataclasses import dataclass
from inferlet_py import *

@dataclass
class Person:
    name: str
    pets: list[str]

@tool
async def weather(city: str) -> str:
    '''Tell the weather in a city.

    Args:
        city: Its name.
    '''
    return "sunny"

@inferlet
async def main(prompt: str = {prompt!r}, url: str = "https://api.example.com/stream") -> None:
    text = query = "red kite"
    question = dict(text=prompt)
    sampler = Sampler(temperature=0.5, seed=1)
    newline = get_model().tokenize("\\n")[0]
    processor = await Processor.create(presence_penalty=0.5)
    async with Context() as ctx, Chat() as chat:
        await ctx.fill(prompt)
        chat.user("Who are you?")
{body}
"""

AROUND = {
    "": "{block}",
    # Topics go on until somebody leaves: here once the latest news are in the store.
    "topics": """
async def tell():
    while not await store.get("latest"):
        async with spawn("reporter") as child:
            await child.wait()
    nursery.cancel_scope.cancel()

async with open_nursery() as nursery:
    nursery.start_soon(tell)
{block}
""",
}
"""What is around a fragment, by name."""

OTHERS = {
    "judge": """
from inferlet_py import inferlet, send

@inferlet
async def main(text: str) -> str:
    await send("so far so good")
    return text
""",
    "reporter": """
from inferlet_py import broadcast, inferlet

@inferlet
async def main() -> None:
    broadcast("news", "rain")
""",
}
"""Programs that fragments launch."""


def make_program(fragment: str, surroundings: str) -> str:
    """Return a program that runs a fragment."""
    around = AROUND[surroundings]
    depth = 4 if surroundings else 0
    block = textwrap.indent(fragment, " " * depth)
    body = textwrap.indent(around.format(block=block), " " * 8)
    return PROGRAM.format(body=body, prompt=PROMPT)


def answer_requests() -> McpServer:
    """Return what answers all requests that the pages make."""
    return _Servers()


class _Servers(McpServer):
    def __call__(self, seen: Seen) -> Reply:
        if seen.target == "/mcp":
            return super().__call__(seen)
        if seen.target == "/stream":
            kind = (("content-type", "text/event-stream"),)
            return Reply(200, kind, b"data: one\n\ndata: two\n\n")
        answer = {"sky": "sunny", "results": []}
        kind = (("content-type", "application/json"),)
        return Reply(200, kind, json.dumps(answer).encode())
