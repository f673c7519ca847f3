"""Answer a question by thoughts, actions and observations; the actions are real requests."""

import re
from urllib.parse import quote

from inferlet_py import Context, http_get, inferlet, send

PROMPT = """\
<|im_start|>system
Answer with Thought, Action, Observation and Answer.
- weather[city]: the weather in a city
- calculator[expression]: compute a number
- lookup[key]: the value of a key<|im_end|>
<|im_start|>user
{}<|im_end|>
<|im_start|>assistant
"""


@inferlet
async def main(
    question: str = "How many degrees warmer is Paris than Oslo?",
    tools: str = "http://127.0.0.1:8099",
    max_actions: int = 8,
    restart: bool = False,
) -> str:
    """Answer a question with tools; what the model has read stays while they work.

    Args:
        question: As `What is the weather in Oslo? What is 12 * 7?`
        tools: Where they are; `pie run --allow-http` has to allow it.
        max_actions: Most calls of tools.
        restart: For comparison, read everything again after each of them.
    """
    async with Context() as ctx:
        await ctx.fill(PROMPT.format(question))
        for _ in range(max_actions + 1):
            text = await ctx.generate(stop="Observation:").text()
            await send(text)
            action = re.search(r"Action: (\w+)\[(.*)\]", text)
            if action is None:
                return text.partition("Answer: ")[2]
            found = await http_get(f"{tools}/{action[1]}/{quote(action[2])}")
            await send(f"Observation: {found.text()}\n")
            if restart:
                tokens = list(ctx.token_ids)
                ctx.truncate(0)
                ctx.append(tokens)
            await ctx.fill(f" {found.text()}\n")
    raise RuntimeError(f"no answer after {max_actions} actions")
