"""``tokenize.wit``: text to tokens and back, and chats to text."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import trio

from pie_trio.application.chat.renderer import RenderRequest
from pie_trio.application.host.interface import HANDLES, fallible, interface, waiting
from pie_trio.application.host.traits import check_trait
from pie_trio.application.waiting import Waiting
from pie_trio.application.wasm.values import (
    BOOL,
    STRING,
    U8,
    U32,
    Array,
    List,
    Record,
)
from pie_trio.errors import (
    BadArgumentError,
    LimitError,
    NotFoundError,
    UnsupportedError,
)

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

MAX_CHAT_CHARACTERS = 1 << 21
"""Of messages, tools and variables, as JSON."""

CHAT_REQUEST = Record(
    messages=STRING,
    tools=STRING,
    variables=STRING,
    template=STRING,
    add_generation_prompt=BOOL,
)


def tokenize(
    session: Session, model: str, text: str, special: bool
) -> NDArray[np.int32] | Waiting:
    """Return the token ids of a text; a long one is tokenized in a thread."""
    found = session.model(model)
    check_trait(found.info, "tokenize")
    encode = partial(found.tokenizer.encode, text, add_special_tokens=special)
    return _run_long(session, found, encode, size=len(text))


def detokenize(session: Session, model: str, tokens: list[int]) -> str | Waiting:
    """Return the text of token ids, without special tokens."""
    found = session.model(model)
    check_trait(found.info, "tokenize")
    if tokens and max(tokens) >= found.info.vocab_size:
        raise BadArgumentError(
            f"token {max(tokens)} is not below {found.info.vocab_size}, the model's vocabulary"
        )
    decode = partial(found.tokenizer.decode, tokens, skip_special_tokens=True)
    return _run_long(session, found, decode, size=len(tokens))


def render_chat(session: Session, model: str, chat: tuple[Any, ...]) -> Waiting:
    """Return the text of a chat, which another process makes.

    Raises:
        UnsupportedError: The model came without a chat template.
        NotFoundError: It has none of that name.
        LimitError: The chat is too long.
    """
    messages, tools, variables, name, adds_generation_prompt = chat
    info = session.model(model).info
    check_trait(info, "tokenize")
    get_renderer = session.services.get_renderer
    if not info.chat.by_name or get_renderer is None:
        raise UnsupportedError(
            f"{info.name} came without a chat template: write the prompt in its own format and "
            "fill() a context with it, or put a chat_template.jinja into the model's directory"
        )
    if not name:
        name = "tool_use" if tools and "tool_use" in info.chat.by_name else "default"
    template = info.chat.by_name.get(name)
    if template is None:
        raise NotFoundError(
            f"{info.name} has no chat template {name!r}: it has "
            f"{', '.join(info.chat.by_name)}"
        )
    size = len(messages) + len(tools) + len(variables)
    if size > MAX_CHAT_CHARACTERS:
        raise LimitError(
            f"the chat has {size} characters as JSON, but {MAX_CHAT_CHARACTERS} are the limit: "
            "leave the oldest messages out"
        )
    request = RenderRequest(
        template,
        messages,
        tools,
        variables,
        dict(info.chat.special_tokens),
        adds_generation_prompt,
        datetime.now().isoformat(),
    )

    async def work() -> str:
        renderer = await get_renderer()
        return await renderer.render(request)

    return Waiting(work)


def get_vocabs(session: Session, model: str) -> list[NDArray[np.uint8]]:
    """Return the bytes of every token."""
    found = session.model(model)
    check_trait(found.info, "tokenize")
    vocabulary = found.tokenizer.vocabulary()
    return [np.frombuffer(token, np.uint8) for token in vocabulary]


def _run_long(
    session: Session, model: ServedModel, call: Callable[[], T], *, size: int
) -> T | Waiting:
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
        async with session.tokenizing_turn:
            return await trio.to_thread.run_sync(
                call, abandon_on_cancel=True, limiter=model.tokenizer_limiter
            )

    return Waiting(work)


INTERFACE = interface(
    "tokenize",
    {
        "tokenize": waiting(tokenize, Array(U32), STRING, STRING, BOOL),
        "detokenize": waiting(detokenize, STRING, STRING, HANDLES),
        "render-chat": waiting(render_chat, STRING, STRING, CHAT_REQUEST),
        "get-vocabs": fallible(get_vocabs, List(Array(U8)), STRING),
    },
    types={"chat-request": CHAT_REQUEST},
)
