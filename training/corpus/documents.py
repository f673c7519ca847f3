"""What a family of text produces: a document of prompts and completions.

Only completions carry the full weight in training: questions are mostly chance, and a
small model should not spend itself on predicting them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import Enum

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
DEFAULT_SYSTEM = "You are Pie, a small helpful assistant."

_HELD_OUT_SHARE = 16


class Split(Enum):
    """Which half of the world a document belongs to."""

    TRAIN = "train"
    HELD_OUT = "held_out"


@dataclass(frozen=True, slots=True)
class Turn:
    """A prompt and the completion that the model should give."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Document:
    """One training text.

    Attributes:
        family: Name of the family that made it.
        kind: Which pattern of the family it follows.
        turns: Prompts and completions in order; together they are the whole text.
        entities: What makes the document particular. Documents with the same
            entities fall into the same split, so that no question is in both; empty
            for closed knowledge, which both splits share.
    """

    family: str
    kind: str
    turns: tuple[Turn, ...]
    entities: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text, special tokens included."""
        return "".join(turn.prompt + turn.completion for turn in self.turns)

    @property
    def answer(self) -> str:
        """The last completion without its end-of-turn token."""
        last = self.turns[-1].completion
        return last.removesuffix(IM_END).removesuffix(END_OF_TEXT)

    def is_in(self, split: Split) -> bool:
        """Return whether the entities put this document into ``split``."""
        if not self.entities:
            return True
        digest = zlib.crc32("|".join((self.family, *self.entities)).encode())
        is_held_out = digest % _HELD_OUT_SHARE == 0
        return is_held_out is (split is Split.HELD_OUT)


def message(role: str, content: str) -> str:
    """Return one message of the chat template with its newline."""
    return f"{IM_START}{role}\n{content}{IM_END}\n"


def chat(*messages: tuple[str, str]) -> tuple[Turn, ...]:
    """Return turns that render ``messages`` with the chat template.

    Args:
        messages: Pairs of role and content; the assistant's are completions. The last
            one must be the assistant's.
    """
    turns: list[Turn] = []
    prompt = ""
    for role, content in messages:
        if role == "assistant":
            prompt += f"{IM_START}assistant\n"
            turns.append(Turn(prompt, content + IM_END))
            prompt = "\n"
        else:
            prompt += message(role, content)
    assert prompt == "\n", "a chat document ends with the assistant"
    return tuple(turns)
