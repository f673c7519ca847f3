"""Numbers that the host takes, checked before it is called.

In Wasm a number that does not fit its field would trap, which no program can catch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

from inferlet_py._errors import BadArgumentError

__all__ = ["check_int", "check_real", "check_texts", "check_tokens", "show"]


def check_tokens(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    """Return token ids as a list.

    Raises:
        BadArgumentError: One is no int, or not in ``[0, vocab_size)``.
    """
    given = cast("object", token_ids)  # authors without a type checker pass anything
    if isinstance(given, str | bytes):
        raise BadArgumentError(
            f"token ids are ints from 0 to {vocab_size - 1}, got {show(given)}: "
            "tokenize() a text, or fill() the context with it"
        )
    try:
        found = list(token_ids)
    except TypeError:
        raise BadArgumentError(
            f"token ids are several ints from 0 to {vocab_size - 1}, got {show(given)}: "
            "put one into a list"
        ) from None
    for token_id in found:  # of every step: as little as possible
        if type(token_id) is not int or not 0 <= token_id < vocab_size:
            _check_token(token_id, vocab_size)
    return found


def _check_token(token_id: object, vocab_size: int) -> None:
    if not isinstance(token_id, int) or isinstance(token_id, bool) or token_id < 0:
        raise BadArgumentError(
            f"token ids are ints from 0 to {vocab_size - 1}, got {show(token_id)}"
        )
    if token_id >= vocab_size:
        raise BadArgumentError(
            f"token {token_id} is not below {vocab_size}, the model's vocabulary"
        )


def check_int(name: str, value: object, largest: int | None = None) -> None:
    """Raise unless a value is an int from 0 to ``largest``.

    Raises:
        BadArgumentError: It names the value and what was expected.
    """
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and value >= 0
        and (largest is None or value <= largest)
    ):
        return
    expected = "of 0 or more" if largest is None else f"from 0 to {largest}"
    raise BadArgumentError(f"{name} is an int {expected}, got {show(value)}")


def check_real(
    name: str, value: object, largest: float, *, may_be_zero: bool = True
) -> None:
    """Raise unless a value is a number from 0 to ``largest``.

    Raises:
        BadArgumentError: It names the value and what was expected.
    """
    if (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value <= largest
        and (may_be_zero or value > 0)
    ):
        return
    lowest = "from 0" if may_be_zero else "above 0 and up"
    raise BadArgumentError(
        f"{name} is a number {lowest} to {largest:g}, got {show(value)}"
    )


def check_texts(name: str, value: object) -> list[str]:
    """Return a text, or several, as a list.

    Raises:
        BadArgumentError: It names the value and what was expected.
    """
    given = [value] if isinstance(value, str) else value
    if isinstance(given, Iterable) and not isinstance(given, bytes):
        found = list(cast("Iterable[object]", given))
        if all(isinstance(text, str) for text in found):
            return cast("list[str]", found)
    raise BadArgumentError(f"{name} is a text or a list of texts, got {show(value)}")


def show(value: object) -> str:
    """Return a value and its type for a message."""
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{shown} ({type(value).__name__})"
