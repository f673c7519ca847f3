"""Several agents, each an inferlet with a tool of its own, answer what is asked in a topic."""

import json
import re
from contextlib import AsyncExitStack
from urllib.parse import quote

from inferlet_py import (
    Context,
    broadcast,
    get_instance_id,
    http_get,
    inferlet,
    send,
    spawn,
    subscribe,
)

AGENTS = {
    "weather": "weather[city]: the weather in a city",
    "calculator": "calculator[expression]: compute a number",
    "lookup": "lookup[key]: the value of a key",
    "search": "search[word]: the items with a word in their name",
}
PROMPT = """\
<|im_start|>system
Answer with Thought, Action, Observation and Answer.
- {}<|im_end|>
<|im_start|>user
{}<|im_end|>
<|im_start|>assistant
"""
QUESTIONS = (
    "What is the weather in Oslo?",
    "What is 12 * 7?",
    'What is the value of "red_kite"?',
    "Search for red.",
)


async def answer(question: str, agent: str, tools: str) -> str:
    """Return what an agent says to a question: nothing, if its tool is of no use there."""
    async with Context() as ctx:
        await ctx.fill(PROMPT.format(AGENTS[agent], question))
        text = await ctx.generate(stop="Observation:").text()
        action = re.search(rf"Action: {agent}\[(.*)\]", text)
        if action is None:
            return ""
        found = await http_get(f"{tools}/{agent}/{quote(action[1])}")
        await ctx.fill(f" {found.text()}\n")
        return (await ctx.generate().text()).partition("Answer: ")[2]


async def work(agent: str, swarm: str, tools: str) -> None:
    """Answer what is asked in the topic of the swarm."""
    async with subscribe(f"{swarm}.questions") as questions:
        await send("ready")
        async for message in questions:
            question = str(message.content)
            said = await answer(question, agent, tools)
            broadcast(f"{swarm}.answers", json.dumps([agent, question, said]))


@inferlet
async def main(
    questions: list[str] = list(QUESTIONS),  # noqa: B006 - never changed
    tools: str = "http://127.0.0.1:8099",
    agent: str = "",
    swarm: str = "",
) -> list[str]:
    """Ask all agents at once; who has the right tool answers.

    Args:
        questions: As `What is the weather in Oslo?`, one tool each.
        tools: Where they are; `pie run --allow-http` has to allow it.
        agent: Be this one: what the program launches itself with.
        swarm: Of the agent.
    """
    if agent:
        await work(agent, swarm, tools)
        return []
    swarm, answers = get_instance_id(), dict[str, str]()
    async with subscribe(f"{swarm}.answers") as heard, AsyncExitStack() as stack:
        agents = [spawn(agent=name, swarm=swarm, tools=tools) for name in AGENTS]
        for child in agents:
            await stack.enter_async_context(child)
            await child.receive()  # it listens
        for question in questions:
            broadcast(f"{swarm}.questions", question)
        for _ in range(len(questions) * len(agents)):
            message = await heard.receive()
            assert message is not None, "the subscription is open"
            name, question, said = json.loads(message.content)
            if said:
                answers[question] = said
                await send(f"{name}: {said}\n")
        for child in agents:
            child.cancel()
    return [answers.get(question, "Nobody knows.") for question in questions]
