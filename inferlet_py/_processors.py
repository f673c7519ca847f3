"""Grammars, penalties and biases: what changes logits before a token is chosen."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from inferlet_py._checks import check_int, check_real, check_tokens
from inferlet_py._closing import AsyncCloses, Closes
from inferlet_py._errors import BadArgumentError, HostError
from inferlet_py._host import ProcessorSpec, get_host
from inferlet_py._models import get_model
from inferlet_py._tasks import wait_to_take
from inferlet_py._typed import name_of, schema_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from inferlet_py._models import Model

__all__ = ["Grammar", "Processor", "choose_constraint"]

LARGEST = 1e6
MAX_ACCEPTED = 4096
"""The host's own limits."""
MAX_U32 = 2**32 - 1

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Grammar:
    """What a text has to match, token by token; see ``docs/guides/grammars.md``.

    Attributes:
        kind: How it is written.
        text: As the author wrote it.
    """

    kind: Literal["json-schema", "regex", "lark", "gbnf"]
    text: str

    @staticmethod
    def json_schema(schema: Mapping[str, Any] | bool | str | type) -> Grammar:
        """Return the grammar of the JSON values that fit a schema.

        Args:
            schema: A JSON Schema, or its text, or a type that JSON can carry, as a dataclass.
        """
        if isinstance(schema, str):
            return Grammar("json-schema", schema)
        if isinstance(schema, dict | bool):
            return Grammar("json-schema", json.dumps(schema))
        kind = cast("Any", schema)
        return Grammar("json-schema", json.dumps(schema_of(kind, name_of(kind))))

    @staticmethod
    def regex(pattern: str) -> Grammar:
        """Return the grammar of the texts that match a regular expression as a whole."""
        return Grammar("regex", pattern)

    @staticmethod
    def lark(text: str) -> Grammar:
        """Return the grammar that a Lark text defines, from its rule ``start`` on."""
        return Grammar("lark", text)

    @staticmethod
    def gbnf(text: str) -> Grammar:
        """Return the grammar that a text of llama.cpp defines, from its rule ``root`` on."""
        return Grammar("gbnf", text)


class Processor(AsyncCloses, Closes):
    """Changes the logits of one sequence. Made by :meth:`create`; an (async) context manager.

    It stands in one place of the sequence, behind the tokens that it was told of. A generation
    tells it by itself what comes into the context; who samples in other ways calls
    :meth:`accept`.
    """

    def __init__(self, model: Model, number: int) -> None:
        """Take over what the host has made under a number."""
        self.number = number
        self._model = model
        self._is_open = True

    @classmethod
    async def create(
        cls,
        *,
        grammar: Grammar | None = None,
        bias: Mapping[int, float] | None = None,
        allowed_tokens: Iterable[int] | None = None,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        dry_multiplier: float = 0.0,
        dry_base: float = 1.75,
        dry_allowed_length: int = 2,
        dry_breakers: Iterable[int] = (),
        window: int = 0,
        prompt: Iterable[int] = (),
        mirostat_tau: float = 0.0,
        mirostat_eta: float = 0.1,
        model: str = "",
    ) -> Processor:
        """Make a processor, and wait until its grammar is compiled.

        They apply in the order of the arguments, and before temperature and filters. The
        probabilities that are returned besides tokens are those without a processor.

        Args:
            grammar: What the tokens have to match (trait ``grammar``).
            bias: By token id, what is added to the logit; ``-inf`` forbids the token.
            allowed_tokens: All others are forbidden, also those that end a text.
            repetition_penalty: Logits of tokens in the window are divided by it where they
                are positive, else multiplied.
            presence_penalty: Subtracted once for each token in the window.
            frequency_penalty: Subtracted for each time that a token is in the window.
            dry_multiplier: A token that would prolong a repetition of ``n`` tokens loses
                ``dry_multiplier * dry_base ** (n - dry_allowed_length)``.
            dry_base: At least 1.
            dry_allowed_length: Shorter repetitions cost nothing.
            dry_breakers: Tokens that no repetition goes across.
            window: So many of the latest tokens count for the penalties; 0 for all.
            prompt: Tokens that come before: the penalties look at them, the grammar does not.
            mirostat_tau: Target surprise of Mirostat 2 in bits; 0 is off.
            mirostat_eta: Its learning rate.
            model: Name of a model of the server; its default one without.

        Raises:
            BadArgumentError: A value is out of range, or the grammar cannot be used.
            UnsupportedError: The model lacks the trait ``processors`` or ``grammar``.
        """
        for name, value, largest in (
            ("repetition_penalty", repetition_penalty, LARGEST),
            ("dry_multiplier", dry_multiplier, LARGEST),
            ("dry_base", dry_base, LARGEST),
            ("mirostat_tau", mirostat_tau, LARGEST),
            ("mirostat_eta", mirostat_eta, LARGEST),
        ):
            check_real(name, value, largest)
        for name, value in (
            ("presence_penalty", presence_penalty),
            ("frequency_penalty", frequency_penalty),
        ):
            check_real(name, abs(value), LARGEST)
        check_int("dry_allowed_length", dry_allowed_length, MAX_U32)
        check_int("window", window, MAX_U32)
        found = get_model(model)
        size = found.info.vocab_size
        breakers = check_tokens(dry_breakers, size)
        spec = ProcessorSpec(
            grammar=None if grammar is None else (grammar.kind, grammar.text),
            bias=_check_bias(bias or {}, size),
            allowed_tokens=None
            if allowed_tokens is None
            else check_tokens(allowed_tokens, size),
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            dry=(dry_multiplier, dry_base, dry_allowed_length, breakers)
            if dry_multiplier
            else None,
            window=window,
            prompt=check_tokens(prompt, size),
            mirostat=(mirostat_tau, mirostat_eta) if mirostat_tau else None,
        )
        host, number = get_host(), next(_numbers)
        ticket = host.create_processor(number, found.name, spec)
        try:
            await wait_to_take(ticket)
            host.finish(ticket)
        except BaseException:
            with contextlib.suppress(HostError):  # most often it is gone already
                host.destroy_processor([number])
            raise
        return cls(found, number)

    def __repr__(self) -> str:
        return f"<Processor {self.number}>"

    @property
    def is_open(self) -> bool:
        """It was not closed."""
        return self._is_open

    @property
    def has_ended(self) -> bool:
        """Nothing but the end can follow, by its grammar.

        Raises:
            BusyError: Forwards on their way use it.
        """
        return get_host().has_ended(self.number)

    def close(self) -> None:
        """Give it back; forwards on their way still use it."""
        if self._is_open:
            self._is_open = False
            get_host().destroy_processor([self.number])

    def accept(self, token_ids: Iterable[int]) -> int:
        """Tell it which tokens were chosen.

        Returns:
            How many of them it allows: it has accepted these, and none after them.

        Raises:
            BadArgumentError: One is no token id of the model.
            BusyError: Forwards on their way use it.
        """
        tokens = check_tokens(token_ids, self._model.info.vocab_size)
        num_accepted = 0
        for first in range(0, len(tokens), MAX_ACCEPTED):
            part = tokens[first : first + MAX_ACCEPTED]
            count = get_host().accept(self.number, part)
            num_accepted += count
            if count < len(part):
                break
        return num_accepted

    def rollback(self, count: int) -> None:
        """Take back the latest tokens that it has accepted, with all that they changed.

        Raises:
            BadArgumentError: There are not so many.
            BusyError: Forwards on their way use it.
        """
        check_int("count", count, MAX_U32)
        get_host().rollback(self.number, count)

    def allowed(self) -> list[int]:
        """Return the tokens that are allowed next, ascending.

        Raises:
            BusyError: Forwards on their way use it.
        """
        return _bits(get_host().allowed(self.number))

    def fork(self) -> Processor:
        """Return another one that goes on from here, for another sequence.

        Raises:
            BusyError: Forwards on their way use it.
        """
        number = next(_numbers)
        get_host().fork_processor(self.number, [number])
        return Processor(self._model, number)


def choose_constraint(
    processor: Processor | None,
    grammar: Grammar | None,
    regex: str | None,
    json_schema: Mapping[str, Any] | bool | str | type | None,
) -> Processor | Grammar | None:
    """Return the one that is given, if any is.

    Raises:
        BadArgumentError: Several are.
    """
    given: list[Processor | Grammar] = []
    if processor is not None:
        given.append(processor)
    if grammar is not None:
        given.append(grammar)
    if regex is not None:
        given.append(Grammar.regex(regex))
    if json_schema is not None:
        given.append(Grammar.json_schema(json_schema))
    if len(given) > 1:
        raise BadArgumentError(
            "a generation takes one of processor, grammar, regex and json_schema: make a "
            "Processor with the grammar to have penalties too"
        )
    return given[0] if given else None


def _check_bias(bias: Mapping[int, float], vocab_size: int) -> list[tuple[int, float]]:
    check_tokens(bias, vocab_size)
    for value in bias.values():
        if value != -math.inf:
            check_real("the amount of a bias", abs(value), LARGEST)
    return [(token, float(value)) for token, value in bias.items()]


def _bits(words: Sequence[int]) -> list[int]:
    """Return which bits are set, the lowest one of each word first."""
    found: list[int] = []
    for index, word in enumerate(words):
        rest = word
        while rest:
            lowest = rest & -rest
            found.append(32 * index + lowest.bit_length() - 1)
            rest ^= lowest
    return found
