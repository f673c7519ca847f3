"""Run the model as an agent: its calls go to real tools, their results back to it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from training.corpus import react, tool_calls
from training.corpus.documents import IM_END, message
from training.corpus.toolbox import JSONValue, Toolbox, as_observation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.corpus.tasks import Task
    from training.generate import Generator

Calls = list[tuple[str, dict[str, JSONValue]]]
_MAX_ROUNDS = 8


@dataclass(slots=True)
class Episode:
    """What the model did with one task."""

    task: Task
    transcript: str
    calls: Calls = field(default_factory=list)
    is_valid: bool = True
    answer: str | None = None

    @property
    def has_right_calls(self) -> bool:
        """Whether tools and arguments are those of the task, in their order."""
        expected = [call for calls in self.task.rounds for call in calls]
        wanted = [(call.name, _as_text(call.arguments)) for call in expected]
        return wanted == [(name, _as_text(given)) for name, given in self.calls]

    @property
    def has_right_answer(self) -> bool:
        """Whether the final answer is word for word that of the task."""
        return self.answer == self.task.answer


def _as_text(arguments: dict[str, JSONValue]) -> dict[str, str]:
    return {name: str(value) for name, value in arguments.items()}


def run_react(generator: Generator, tasks: Sequence[Task]) -> list[Episode]:
    """Return one episode a task, each played to its answer as a ReACT transcript."""
    episodes = [Episode(task, react.open_prompt(task)) for task in tasks]
    for _ in range(_MAX_ROUNDS):
        going = [e for e in episodes if e.is_valid and e.answer is None]
        prompts = [episode.transcript for episode in going]
        completions = generator.complete(prompts, stop=react.STOP)
        for episode, text in zip(going, completions, strict=True):
            _advance_react(episode, text)
    return episodes


def _advance_react(episode: Episode, text: str) -> None:
    if not text.endswith(react.STOP):
        _, found, answer = text.partition("\nAnswer: ")
        episode.is_valid = bool(found)
        episode.answer = answer
        return
    action = react.parse_action(text.removesuffix(react.STOP))
    if action is None:
        episode.is_valid = False
        return
    episode.calls.append(action)
    result = Toolbox(episode.task.store).call(*action)
    episode.transcript += f"{text} {as_observation(result)}\n"


def run_tool_calls(generator: Generator, tasks: Sequence[Task]) -> list[Episode]:
    """Return one episode a task, each played to its answer with JSON tool calls."""
    episodes = [
        Episode(task, tool_calls.to_document(task).turns[0].prompt) for task in tasks
    ]
    for _ in range(_MAX_ROUNDS):
        going = [e for e in episodes if e.is_valid and e.answer is None]
        completions = generator.complete([episode.transcript for episode in going])
        for episode, text in zip(going, completions, strict=True):
            _advance_tool_calls(episode, text)
    return episodes


def _advance_tool_calls(episode: Episode, text: str) -> None:
    calls = tool_calls.parse_calls(text)
    if calls is None:
        episode.is_valid = False
    elif not calls:
        episode.answer = text
    else:
        episode.calls += calls
        toolbox = Toolbox(episode.task.store)
        results = (json.dumps(toolbox.call(*call)) for call in calls)
        episode.transcript += f"{text}{IM_END}\n"
        episode.transcript += "".join(message("tool", result) for result in results)
        episode.transcript += "<|im_start|>assistant\n"
