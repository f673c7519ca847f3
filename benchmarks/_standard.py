"""Techniques that examples show, with what a client asks another server for the same task."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from examples.constrained_decoding.app import PERSON
from examples.modular_caching.app import MODULES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokenizers import Tokenizer

__all__ = ["STANDARD", "Request", "Run", "Standard", "Texts"]

END = "<|im_end|>\n<|im_start|>assistant\n"
NUM_WORDS_SHARED, NUM_WORDS_OWN, NUM_WORDS_ASKED = 256, 64, 16
NUM_LEAVES = 8
NUM_ANSWERED = 32
"""What the examples of caching generate at most."""
BEAMS = 5
LONG = 4
"""Times as many tokens as of other techniques."""
FULL_ATTENTION = "it has full attention, and keeps all pages"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a server with OpenAI's interface.

    Attributes:
        prompt: A text.
        num_tokens: Most of the answer.
        extra: Of the body.
        streams: The answer comes in parts.
    """

    prompt: str
    num_tokens: int
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    streams: bool = True


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a technique.

    Attributes:
        arguments: Of the example.
        requests: That do the same, all at once.
    """

    arguments: Mapping[str, Any]
    requests: Sequence[Request]


class Texts:
    """Words that are a token each, most of them, in an order that nobody has seen."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        words = (token for token in tokenizer.get_vocab())
        self._words = sorted(w[1:] for w in words if re.fullmatch("Ġ[a-z]{3,8}", w))
        self.rng = random.Random(seed)
        self.shared = self.next(NUM_WORDS_SHARED)

    def next(self, num_words: int) -> str:
        """Return a text of so many words."""
        return " ".join(self.rng.choice(self._words) for _ in range(num_words))


@dataclass(frozen=True, slots=True)
class Standard:
    """A technique of the examples.

    Attributes:
        example: Its folder.
        make: Makes a run of so many tokens that nobody has asked for yet.
        needs: What only some servers have: "beams"; "" for nothing.
        unlike: What is another thing on the other server; "" if it is the same.
    """

    example: str
    make: Callable[[Texts, int], Run]
    needs: str = ""
    unlike: str = ""


def _completion(texts: Texts, num_tokens: int) -> Run:
    prompt = texts.next(NUM_WORDS_OWN)
    return _alike(prompt, num_tokens)


def _alike(prompt: str, num_tokens: int, **arguments: Any) -> Run:
    given = {"prompt": prompt, "max_tokens": num_tokens, **arguments}
    return Run(given, [Request(prompt, num_tokens)])


def _prefix_caching(texts: Texts, _: int) -> Run:
    question = texts.next(NUM_WORDS_ASKED)
    prompt = f"<|im_start|>user\nNotes:\n{texts.shared}\nQuestion: {question}{END}"
    arguments = {"question": question, "notes": texts.shared}
    return Run(arguments, [Request(prompt, NUM_ANSWERED)])


def _prefix_tree(texts: Texts, _: int) -> Run:
    prompts = [texts.next(NUM_WORDS_ASKED)]
    while len(prompts) < NUM_LEAVES:
        prompts = [f"{p} {texts.next(NUM_WORDS_ASKED)}" for p in prompts for _ in "01"]
    requests = [Request(prompt, NUM_ANSWERED) for prompt in prompts]
    return Run({"prompts": prompts, "max_tokens": NUM_ANSWERED}, requests)


def _modular_caching(texts: Texts, _: int) -> Run:
    question = texts.next(NUM_WORDS_ASKED)
    names = ["start", *(n for n in list(MODULES)[1:] if texts.rng.random() < 0.5)]
    prompt = "".join(MODULES[name] for name in names) + f"Question: {question}{END}"
    arguments = {"question": question, "modules": names, "max_tokens": NUM_ANSWERED}
    return Run(arguments, [Request(prompt, NUM_ANSWERED)])


def _speculative(texts: Texts, num_tokens: int) -> Run:
    return _alike(texts.next(NUM_WORDS_OWN // 2), num_tokens)


def _beam_search(texts: Texts, num_tokens: int) -> Run:
    prompt, extra = texts.next(NUM_WORDS_OWN), {"use_beam_search": True, "n": BEAMS}
    arguments = {"prompt": prompt, "max_tokens": num_tokens, "width": BEAMS}
    return Run(arguments, [Request(prompt, num_tokens, extra, streams=False)])


def _constrained(texts: Texts, num_tokens: int) -> Run:
    asked = texts.next(NUM_WORDS_ASKED)
    prompt = f"<|im_start|>user\n{asked}{END}"
    seed = texts.rng.randrange(1 << 30)
    extra = {
        "temperature": 1.0,
        "seed": seed,
        "structured_outputs": {"json": PERSON, "disable_any_whitespace": True},
    }
    # Random weights would write spaces for ever, where they may.
    schema = {**json.loads(PERSON), "x-guidance": {"whitespace_flexible": False}}
    arguments = {
        "prompt": asked,
        "schema": json.dumps(schema),
        "seed": seed,
        "max_tokens": num_tokens,
    }
    return Run(arguments, [Request(prompt, num_tokens, extra)])


def _sink(texts: Texts, num_tokens: int) -> Run:
    prompt = texts.next(NUM_WORDS_OWN)
    return _alike(prompt, LONG * num_tokens, temperature=0.0)


def _window(texts: Texts, num_tokens: int) -> Run:
    return _alike(texts.next(NUM_WORDS_OWN), LONG * num_tokens)


STANDARD = {
    "completion": Standard("text_completion", _completion),
    "prefix caching": Standard("prefix_caching", _prefix_caching),
    "prefix tree": Standard("prefix_tree", _prefix_tree),
    "modular caching": Standard(
        "modular_caching",
        _modular_caching,
        unlike="it reads the modules of each prompt again, but for what it begins with",
    ),
    "speculation": Standard("speculative_decoding", _speculative),
    "beam search": Standard("beam_search", _beam_search, needs="beams"),
    "JSON": Standard("constrained_decoding", _constrained, needs="structured outputs"),
    "attention sink": Standard("attention_sink", _sink, unlike=FULL_ATTENTION),
    "window": Standard("windowed_attention", _window, unlike=FULL_ATTENTION),
}
