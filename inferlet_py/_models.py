"""A model of the server, with the program's command queue on it."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from inferlet_py._checks import check_tokens
from inferlet_py._host import ChatValues, ModelInfo, get_host
from inferlet_py._numbers import Numbers, start_anew

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Model",
    "available_models",
    "available_traits",
    "get_model",
    "models_with_traits",
]


class Model:
    """A model; get one with :func:`get_model`.

    Attributes:
        info: What it is.
        queue: The program's command queue on it.
    """

    def __init__(self, info: ModelInfo, queue: int) -> None:
        self.info, self.queue = info, queue
        self._page_numbers = itertools.count(1)
        self._embed_numbers = itertools.count(1)

    @property
    def name(self) -> str:
        """The name under which the server offers it."""
        return self.info.name

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of a text, with the model's own prefix if ``special``."""
        return list(get_host().tokenize(self.name, text, special))

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens.

        Raises:
            BadArgumentError: One is no token id of the model.
        """
        checked = check_tokens(token_ids, self.info.vocab_size)
        return get_host().detokenize(self.name, checked)

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        template: str = "",
        **variables: Any,
    ) -> str:
        """Return the text of a chat, as the chat template that the model came with has it.

        Tokenize it without the model's own prefix, which the template has written: as
        ``Model.tokenize`` does, or ``Context.append``.

        Args:
            messages: Objects with ``role`` and ``content``.
            tools: As OpenAI's interface has them.
            add_generation_prompt: End with what begins the assistant's turn.
            template: Name of one of the model's templates, where it has several.
            variables: What else the template reads, as ``enable_thinking``.

        Raises:
            BadArgumentError: The template refused the chat: the message has its words.
            UnsupportedError: The model came without a chat template.
            NotFoundError: It has no template of that name.
            LimitError: The chat is too long, or its template takes too long.
        """
        return get_host().render_chat(
            self.name,
            ChatValues(
                json.dumps(messages),
                "" if tools is None else json.dumps(tools),
                json.dumps(variables) if variables else "",
                template,
                add_generation_prompt,
            ),
        )

    def vocabulary(self) -> list[bytes]:
        """Return the bytes of every token, by id."""
        return list(get_host().get_vocabs(self.name))

    def new_queue(self) -> int:
        """Open another command queue on the model and return its number."""
        queue = next(_queue_numbers)
        get_host().create_queue(queue, self.name)
        return queue

    def new_embed_numbers(self, count: int) -> list[int]:
        """Return numbers for embeds that were not used before."""
        return list(itertools.islice(self._embed_numbers, count))

    def new_page_numbers(self, count: int) -> list[int]:
        """Return numbers for pages that were not used before."""
        return list(itertools.islice(self._page_numbers, count))


_models: dict[str, Model] = {}
_queue_numbers = Numbers()


def get_model(name: str = "") -> Model:
    """Return a model by name; the server's default one without.

    Raises:
        BadArgumentError: The server has no model of that name.
    """
    if name not in _models:
        host = get_host()
        info = host.get_model(name)
        if info.name not in _models:
            queue = next(_queue_numbers)
            host.create_queue(queue, info.name)
            _models[info.name] = Model(info, queue)
        _models[name] = _models[info.name]
    return _models[name]


def forget_models() -> None:
    """Start anew with another host; for runs that share an interpreter."""
    _models.clear()
    start_anew()


def available_traits(model: str = "") -> list[str]:
    """Return the traits of a model: the interfaces that it supports.

    Raises:
        BadArgumentError: The server has no model of that name.
    """
    return list(get_host().available_traits(model))


def models_with_traits(traits: Sequence[str]) -> list[str]:
    """Return the names of the models that have all of these traits."""
    return list(get_host().models_with_traits(list(traits)))


def available_models() -> list[str]:
    """Return the names of the server's models, the default one first."""
    return list(get_host().available_models())
