"""While a tool works, answer already with what it said last time; keep that if it says so again."""

import json
from dataclasses import dataclass
from typing import Any

from inferlet_py import Chat, http_post, inferlet, open_nursery, run_tools, store, tool


@dataclass
class Answer:
    """An answer, and whether it was written while the tools still worked."""

    text: str
    was_guessed: bool


@inferlet
async def main(
    question: str = "What is the weather in Oslo?",
    tools: str = "http://127.0.0.1:8099",
    guess: bool = True,
) -> Answer:
    """Answer a question with tools that may be slow.

    Args:
        question: As `What is the weather in Oslo? What is the value of "kelmo"?`
        tools: Where they are; `pie run --allow-http` has to allow it.
        guess: Whether to answer before they have.
    """

    @tool
    async def weather(city: str) -> Any:
        """the weather in a city"""
        return (await http_post(f"{tools}/weather", json=[city])).json()

    @tool
    async def lookup(key: str) -> Any:
        """the value of a key"""
        return (await http_post(f"{tools}/lookup", json=[key])).json()

    answers: dict[str, str] = {}  # by what the tools say

    async def answer(said: str) -> None:
        with chat.fork() as branch:
            for result in json.loads(said):
                branch.tool(result)
            answers[said] = await branch.reply().text()

    async with Chat(tools=[weather, lookup]) as chat:
        asked = chat.user(question).reply(max_rounds=1)  # its calls are not made
        await asked.text()
        guessed = await store.get_text(question) if guess else None
        async with open_nursery() as nursery:
            if guessed is not None:
                nursery.start_soon(answer, guessed)
            results = await run_tools(asked.calls, chat.tools)
            said = json.dumps([result.text for result in results])
            if said != guessed:
                nursery.cancel_scope.cancel()
        if said != guessed:
            await answer(said)
            await store.set(question, said)
    return Answer(answers[said], said == guessed)
