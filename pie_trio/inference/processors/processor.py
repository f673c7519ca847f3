"""One processor: what it changes, and what it remembers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from pie_trio.errors import BadArgumentError
from pie_trio.inference.processors.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.engine_api import ProcessorSpec
    from pie_trio.inference.grammar import Matcher

__all__ = ["Processor", "check_spec"]

_LARGEST = 1e6
"""Of a bias, a penalty, a target: more of it changes nothing any more."""


class Processor:
    """The state of one sequence. Not for two threads at once.

    Args:
        spec: Checked by :func:`check_spec`.
        vocab_size: Of the model.
        matcher: Where the sequence stands in its grammar, if it has one.

    Attributes:
        history: Prompt and accepted tokens.
        bias_ids: ``[n]`` int64.
        bias: ``[n]`` float32.
        allowed: ``[vocab_size]`` bool, the tokens that are allowed anywhere; None for all.
        vocab_size: Of the model.
        breakers: No repetition goes across these.
        surprise_limit: Mirostat's largest surprise, in bits; infinite without.
    """

    def __init__(
        self, spec: ProcessorSpec, *, vocab_size: int, matcher: Matcher | None
    ) -> None:
        self.spec, self.matcher = spec, matcher
        self.history = History(spec.prompt, window=spec.window)
        self._num_accepted = 0
        self.vocab_size = vocab_size
        self.bias_ids = np.array([token for token, _ in spec.bias], np.int64)
        self.bias = np.array([value for _, value in spec.bias], np.float32)
        self.allowed: NDArray[np.bool_] | None = None
        if spec.allowed_tokens is not None:
            self.allowed = np.zeros(vocab_size, np.bool_)
            self.allowed[list(spec.allowed_tokens)] = True
        self.breakers = frozenset(spec.dry_breakers)
        has_mirostat = spec.mirostat_tau > 0.0
        self.surprise_limit = 2.0 * spec.mirostat_tau if has_mirostat else math.inf
        self._limits_before: list[float] = []  # of each accepted token
        # Surprises of what was sampled, by number of accepted tokens before, and by token.
        self._draws: dict[int, dict[int, float]] = {}
        self._is_ahead = False

    @property
    def has_ended(self) -> bool:
        """Nothing but the end can follow."""
        return self.matcher is not None and self.matcher.is_finished

    @property
    def is_mask(self) -> bool:
        """It does nothing but forbid tokens: no bias, no penalty, nothing to learn."""
        spec = self.spec
        return not (
            spec.bias or spec.dry_multiplier or spec.mirostat_tau or self.has_penalty
        )

    @property
    def has_penalty(self) -> bool:
        """One of repetition, presence or frequency."""
        spec = self.spec
        return bool(
            spec.repetition_penalty != 1.0
            or spec.presence_penalty
            or spec.frequency_penalty
        )

    def note_draw(self, token: int, share: float) -> None:
        """Note that a token was sampled, with this probability after all filters."""
        if self.surprise_limit < math.inf:
            surprise = -math.log2(share)
            self._draws.setdefault(self._num_accepted, {})[token] = surprise

    def accept(self, tokens: Sequence[int]) -> int:
        """Accept the tokens up to the first one that is not allowed; return how many.

        Raises:
            BadArgumentError: One is no token id.
            GrammarError: The grammar takes too much work here.
        """
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise BadArgumentError(
                    f"a token id should be in [0, {self.vocab_size}), but one is {token}"
                )
        for index, token in enumerate(tokens):
            if not self._accept(token):
                return index
        return len(tokens)

    def roll_back(self, count: int) -> None:
        """Take back the latest accepted tokens.

        Raises:
            BadArgumentError: There are not so many.
        """
        if not 0 <= count <= self._num_accepted:
            raise BadArgumentError(
                f"a processor that has accepted {self._num_accepted} tokens cannot take back "
                f"{count}"
            )
        if self.matcher is not None:
            self.matcher.rollback(count)
        self.history.take_back(count)
        self._num_accepted -= count
        if self._limits_before and count:
            self.surprise_limit = self._limits_before[-count]
            del self._limits_before[-count:]

    def fork(self, *, is_ahead: bool) -> Processor:
        """Return one that goes on from here: see ``Engine.fork_processor``."""
        twin = Processor.__new__(Processor)
        for name in ("spec", "bias_ids", "bias", "allowed", "breakers"):
            setattr(twin, name, getattr(self, name))
        twin.vocab_size, twin._num_accepted = self.vocab_size, self._num_accepted
        twin.matcher = None if self.matcher is None else self.matcher.fork()
        twin.history = self.history.fork()
        twin.surprise_limit = self.surprise_limit
        twin._limits_before = list(self._limits_before)
        twin._is_ahead = is_ahead
        if is_ahead:
            twin._draws = self._draws
        else:
            twin._draws = {at: found.copy() for at, found in self._draws.items()}
        return twin

    def _accept(self, token: int) -> bool:
        if self.allowed is not None and not self.allowed[token]:
            return False
        if self.matcher is not None and not self.matcher.accept([token]):
            return False
        if self.surprise_limit < math.inf:
            self._learn(token)
        self.history.append(token)
        self._num_accepted += 1
        return True

    def _learn(self, token: int) -> None:
        self._limits_before.append(self.surprise_limit)
        draws = self._draws.get(self._num_accepted, {})
        if token in draws:
            error = draws[token] - self.spec.mirostat_tau
            self.surprise_limit -= self.spec.mirostat_eta * error
        if not self._is_ahead:  # or whoever it is ahead of would not find it
            self._draws.pop(self._num_accepted, None)


def check_spec(spec: ProcessorSpec, vocab_size: int) -> None:
    """Check everything but the grammar.

    Raises:
        BadArgumentError: The message names the field, what was expected and what came.
    """
    # Written so that NaN fails every comparison.
    expected_by_field = {
        "repetition_penalty": (0.0 < spec.repetition_penalty <= _LARGEST, "above 0"),
        "presence_penalty": (abs(spec.presence_penalty) <= _LARGEST, "a finite number"),
        "frequency_penalty": (
            abs(spec.frequency_penalty) <= _LARGEST,
            "a finite number",
        ),
        "dry_multiplier": (0.0 <= spec.dry_multiplier <= _LARGEST, "0 or more"),
        "dry_base": (1.0 <= spec.dry_base <= _LARGEST, "at least 1"),
        "dry_allowed_length": (
            1 <= spec.dry_allowed_length <= 2**31,
            "at least 1",
        ),
        "window": (0 <= spec.window <= 2**31, "0 or more"),
        "mirostat_tau": (0.0 <= spec.mirostat_tau <= _LARGEST, "0 or more"),
        "mirostat_eta": (0.0 <= spec.mirostat_eta <= _LARGEST, "0 or more"),
    }
    for field, (is_valid, expected) in expected_by_field.items():
        if not is_valid:
            limit = (
                "" if field in ("window", "dry_allowed_length") else " and at most 1e6"
            )
            raise BadArgumentError(
                f"a processor's {field} is {expected}{limit}, got {getattr(spec, field)}"
            )
    for token, value in spec.bias:
        if not (value == -math.inf or abs(value) <= _LARGEST):
            raise BadArgumentError(
                f"a bias is a finite number up to 1e6, or -inf to forbid a token; that of "
                f"token {token} is {value}"
            )
    biased = [token for token, _ in spec.bias]
    if len(set(biased)) != len(biased):
        raise BadArgumentError("a token has two biases: add them up, and name it once")
    allowed = spec.allowed_tokens
    if allowed is not None and not allowed:
        raise BadArgumentError(
            "no token is allowed: name at least one, or leave the list out"
        )
    for what, tokens in (
        ("biased", biased),
        ("allowed", allowed or ()),
        ("breaking", spec.dry_breakers),
        ("prompt", spec.prompt),
    ):
        if tokens and not (min(tokens) >= 0 and max(tokens) < vocab_size):
            bad = next(token for token in tokens if not 0 <= token < vocab_size)
            raise BadArgumentError(
                f"a {what} token should be in [0, {vocab_size}), but one is {bad}"
            )
