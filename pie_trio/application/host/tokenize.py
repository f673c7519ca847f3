"""``tokenize.wit``: text to tokens and back."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import trio

from pie_trio.application.host.interface import HANDLES, fallible, interface, waiting
from pie_trio.application.host.traits import check_trait
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import BOOL, STRING, U8, U32, Array, List
from pie_trio.errors import BadArgumentError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pie_trio.application.host.session import Session
    from pie_trio.control.served_model import ServedModel

__all__ = ["INTERFACE"]

T = TypeVar("T")

LONG_TOKENIZER_INPUT = 1 << 14
"""Characters or tokens that take about 10 ms: too long for the loop that everybody shares."""

MAX_TOKENIZER_INPUT = 1 << 22


def tokenize(
    session: Session, model: str, text: str, special: bool
) -> NDArray[np.int32] | Waiting:
    """Return the token ids of a text; a long one is tokenized in a thread."""
    found = session.model(model)
    check_trait(found.info, "tokenize")
    encode = partial(found.tokenizer.encode, text, add_special_tokens=special)
    return _run_long(found, encode, size=len(text))


def detokenize(session: Session, model: str, tokens: list[int]) -> str | Waiting:
    """Return the text of token ids, without special tokens."""
    found = session.model(model)
    check_trait(found.info, "tokenize")
    if tokens and max(tokens) >= found.info.vocab_size:
        raise BadArgumentError(
            f"token {max(tokens)} is not below {found.info.vocab_size}, the model's vocabulary"
        )
    decode = partial(found.tokenizer.decode, tokens, skip_special_tokens=True)
    return _run_long(found, decode, size=len(tokens))


def get_vocabs(session: Session, model: str) -> list[NDArray[np.uint8]]:
    """Return the bytes of every token."""
    found = session.model(model)
    check_trait(found.info, "tokenize")
    vocabulary = found.tokenizer.vocabulary()
    return [np.frombuffer(token, np.uint8) for token in vocabulary]


def _run_long(model: ServedModel, call: Callable[[], T], *, size: int) -> T | Waiting:
    """Make a call of the tokenizer, or if its input is long, let the guest wait for it.

    Raises:
        LimitError: The input is too long.
    """
    if size > MAX_TOKENIZER_INPUT:
        raise LimitError(
            f"{size} characters or tokens at once, but {MAX_TOKENIZER_INPUT} are the limit: "
            "take them in parts"
        )
    if size <= LONG_TOKENIZER_INPUT:
        return call()

    async def work() -> T:
        # It touches neither the device nor the guest's memory: it may be left alone.
        return await trio.to_thread.run_sync(
            call, abandon_on_cancel=True, limiter=model.tokenizer_limiter
        )

    return Waiting(work)


INTERFACE = interface(
    "tokenize",
    {
        "tokenize": waiting(tokenize, Array(U32), STRING, STRING, BOOL),
        "detokenize": waiting(detokenize, STRING, STRING, HANDLES),
        "get-vocabs": fallible(get_vocabs, List(Array(U8)), STRING),
    },
)
