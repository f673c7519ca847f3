"""Tool use as OpenAI-style calls: JSON between ``<tool_call>`` and ``</tool_call>``.

Calls that need nothing of each other share one turn; each result is a message of the
role ``tool``, as JSON, in the order of the calls.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from training.corpus import lexicon
from training.corpus.documents import DEFAULT_SYSTEM, Document, chat
from training.corpus.tasks import Call, Task, make_task
from training.corpus.toolbox import TOOLS, JSONValue, Result, Tool

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

INSTRUCTION = "Call tools as JSON when they help."
NO_TOOL = "I have no tool for that."

_CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)
# Other names under which a caller may offer the same tools.
_ALIASES = {
    "calculator": ("calculate", "compute", "math"),
    "weather": ("get_weather", "weather_now", "forecast"),
    "lookup": ("get_value", "read_key", "fetch"),
    "convert": ("convert_unit", "change_unit", "units"),
    "search": ("find_items", "search_items", "find"),
    "city": ("location", "place", "town"),
    "expression": ("formula", "input", "query"),
    "key": ("name", "id", "entry"),
    "word": ("text", "term", "query"),
}


def declare_tools(tools: Sequence[Tool], system: str = DEFAULT_SYSTEM) -> str:
    """Return the system message that offers ``tools``, as the chat template does."""
    lines = []
    for tool in tools:
        parameters = ", ".join(f"{k}: {v}" for k, v in tool.parameters.items())
        lines.append(f"- {tool.name}({parameters}): {tool.description}")
    return "\n".join((system, INSTRUCTION, *lines))


def render_call(name: str, arguments: Mapping[str, JSONValue]) -> str:
    """Return one call as the model writes it."""
    call = {"name": name, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


def parse_calls(text: str) -> list[tuple[str, dict[str, JSONValue]]] | None:
    """Return the calls of a completion; ``None`` if one of them is malformed."""
    calls = []
    for body in _CALL.findall(text):
        try:
            call = json.loads(body)
            calls.append((str(call["name"]), dict(call["arguments"])))
        except (ValueError, KeyError, TypeError):
            return None
    return calls if len(calls) == text.count("<tool_call>") else None


def _messages(
    task: Task, names: Mapping[str, str], system: str
) -> list[tuple[str, str]]:
    def renamed(mapping: Mapping[str, JSONValue]) -> dict[str, JSONValue]:
        return {names.get(key, key): value for key, value in mapping.items()}

    tools = [
        Tool(
            names.get(name, name),
            {names.get(k, k): v for k, v in TOOLS[name].parameters.items()},
            TOOLS[name].description,
        )
        for name in task.tools
    ]
    messages = [("system", declare_tools(tools, system)), ("user", task.question)]
    for calls in task.rounds:
        rendered = (
            render_call(names.get(call.name, call.name), renamed(call.arguments))
            for call in calls
        )
        messages.append(("assistant", "\n".join(rendered)))
        messages += [("tool", json.dumps(call.result)) for call in calls]
    messages.append(("assistant", task.answer if task.rounds else NO_TOOL))
    return messages


def to_document(
    task: Task, names: Mapping[str, str] | None = None, system: str = DEFAULT_SYSTEM
) -> Document:
    """Return the chat of ``task``, tools and parameters renamed by ``names``."""
    turns = chat(*_messages(task, names or {}, system))
    return Document("tool_calls", task.kind, turns, task.entities)


def _foreign_call(rng: Random) -> Document:
    """Return a call of a tool that the model has never met, spelled out by the user."""
    tool = lexicon.made_up_word(rng)
    parameters = [lexicon.made_up_word(rng) for _ in range(rng.randint(1, 3))]
    arguments: dict[str, JSONValue] = {
        name: rng.choice((lexicon.number(rng), lexicon.made_up_word(rng)))
        for name in parameters
    }
    types = {
        name: "number" if isinstance(value, int) else "string"
        for name, value in arguments.items()
    }
    pairs = [f"{name} {json.dumps(value)}" for name, value in arguments.items()]
    result: Result = {"result": rng.choice(("done", "ok", lexicon.made_up_word(rng)))}
    task = Task(
        kind="foreign",
        question=f"Call {tool} with {lexicon.join_and(pairs)}.",
        rounds=((Call("", tool, arguments, result),),),
        answer=f"The result is {result['result']}.",
        tools=(),
        store={},
        entities=(tool, *map(str, arguments.values())),
    )
    messages = _messages(task, {}, DEFAULT_SYSTEM)
    declared = [Tool(tool, types, f"{rng.choice(('run', 'do', 'make'))} {tool}")]
    declared += rng.sample(list(TOOLS.values()), rng.randint(0, 2))
    rng.shuffle(declared)
    messages[0] = ("system", declare_tools(declared))
    return Document("tool_calls", "foreign", chat(*messages), task.entities)


def generate(rng: Random) -> Document:
    """Return a chat with tools, one in four under other names than usual."""
    if rng.random() < 0.1:
        return _foreign_call(rng)
    names = {}
    if rng.random() < 0.25:
        names = {name: rng.choice(others) for name, others in _ALIASES.items()}
    system = rng.choice(
        (DEFAULT_SYSTEM, DEFAULT_SYSTEM, "You are a helpful assistant.")
    )
    return to_document(make_task(rng), names, system)


def check(document: Document) -> bool:
    """Return whether every completion but the last is calls that parse."""
    *steps, _ = (turn.completion for turn in document.turns)
    return all(parse_calls(step) for step in steps if not step.startswith("\n"))
