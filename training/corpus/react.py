"""Tool use as a ReACT transcript: Thought, Action, Observation, Answer.

A program stops generation at ``STOP``, runs the action, appends its result and a
newline, and goes on generating.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from training.corpus.documents import IM_END, Document, Turn, message
from training.corpus.tasks import Task, make_task
from training.corpus.toolbox import TOOLS, JSONValue, as_observation

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from random import Random

INSTRUCTION = "Answer with Thought, Action, Observation and Answer."
STOP = "Observation:"
NO_TOOL = "Thought: I have no tool for that.\nAnswer: I cannot do that."
DONE = "Thought: I know the answer.\nAnswer: "

_ACTION = re.compile(r"Action: (\w+)\[(.*)\]\n$")


def declare(names: Sequence[str]) -> str:
    """Return the system message that offers the tools ``names``."""
    lines = (
        f"- {tool.name}[{', '.join(tool.parameters)}]: {tool.description}"
        for tool in (TOOLS[name] for name in names)
    )
    return "\n".join((INSTRUCTION, *lines))


def render_action(name: str, arguments: Mapping[str, JSONValue]) -> str:
    """Return the action line of a call."""
    return f"Action: {name}[{', '.join(map(str, arguments.values()))}]\n"


def parse_action(text: str) -> tuple[str, dict[str, JSONValue]] | None:
    """Return tool and arguments of the action that ends ``text``, if it is one."""
    match = _ACTION.search(text)
    if match is None or match[1] not in TOOLS:
        return None
    names = tuple(TOOLS[match[1]].parameters)
    values = match[2].split(", ") if len(names) > 1 else [match[2]]
    if len(values) != len(names):
        return None
    return match[1], dict(zip(names, values, strict=True))


def open_prompt(task: Task) -> str:
    """Return everything up to the first thought."""
    return (
        message("system", declare(task.tools))
        + message("user", task.question)
        + "<|im_start|>assistant\n"
    )


def to_document(task: Task) -> Document:
    """Return the transcript of ``task``."""
    turns: list[Turn] = []
    prompt = open_prompt(task)
    for call in (call for calls in task.rounds for call in calls):
        action = render_action(call.name, call.arguments)
        turns.append(Turn(prompt, f"Thought: {call.thought}\n{action}{STOP}"))
        prompt = f" {as_observation(call.result)}\n"
    last = DONE + task.answer if task.rounds else NO_TOOL
    turns.append(Turn(prompt, last + IM_END))
    return Document("react", task.kind, tuple(turns), task.entities)


def generate(rng: Random) -> Document:
    """Return the transcript of a made-up task."""
    return to_document(make_task(rng))


def check(document: Document) -> bool:
    """Return whether every step but the last is an action that parses."""
    *steps, last = (turn.completion for turn in document.turns)
    actions = (parse_action(step.removesuffix(STOP)) for step in steps)
    return all(action is not None for action in actions) and "\nAnswer: " in last
