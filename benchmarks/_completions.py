"""A server with OpenAI's interface, as techniques are written for it that cannot run inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from openai import AsyncOpenAI
    from tokenizers import Tokenizer

__all__ = ["Completer", "Completes", "Said"]


@dataclass(frozen=True, slots=True)
class Said:
    """What a model has said.

    Attributes:
        tokens: Ids.
        value: Probability of the first token, where it was asked for; 0 otherwise.
    """

    tokens: list[int]
    value: float = 0.0


class Completes(Protocol):
    """Completes prompts of tokens: see :class:`Completer`."""

    async def complete(
        self,
        prompt: Sequence[int],
        num_tokens: int,
        *,
        count: int = 1,
        temperature: float = 0.0,
        values: bool = False,
    ) -> list[Said]:
        """Return some completions of a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Completer:
    """Asks a server for completions.

    Attributes:
        openai: Its client.
        tokenizer: Of the model.
        end_bias: Keeps ends out where a server cannot ignore them, and tells texts alone.
            Such a text is tokenized again, and cut or repeated, so that lengths are the same.
            Empty for vLLM, which ignores ends and tells tokens.
    """

    openai: AsyncOpenAI
    tokenizer: Tokenizer
    end_bias: Mapping[str, float]

    async def complete(
        self,
        prompt: Sequence[int],
        num_tokens: int,
        *,
        count: int = 1,
        temperature: float = 0.0,
        values: bool = False,
    ) -> list[Said]:
        """Return some completions of a prompt, by one request.

        Args:
            prompt: Token ids.
            num_tokens: Of each completion, ends ignored.
            count: Of completions.
            temperature: 0 always takes the likeliest token.
            values: Ask for the probability of the first token.

        Raises:
            RuntimeError: The server said less.
        """
        extra: dict[str, Any] = {"ignore_eos": True, "return_token_ids": True}
        if self.end_bias:
            extra = {"logit_bias": self.end_bias}
        if values:
            extra["logprobs"] = 1
        answer = await self.openai.completions.create(
            model="m",
            prompt=list(prompt),
            max_tokens=num_tokens,
            n=count,
            temperature=temperature,
            extra_body=extra,
        )
        usage = answer.usage
        if usage is None or usage.completion_tokens != num_tokens * count:
            raise RuntimeError(f"expected {count} times {num_tokens} tokens: {usage}")
        return [
            Said(self._tokens(choice, num_tokens), _value(choice) if values else 0.0)
            for choice in answer.choices
        ]

    async def read(
        self, prompt: str | Sequence[int], num_tokens: int, **extra: Any
    ) -> int:
        """Read a completion as it comes, up to its end, and return the number of its tokens.

        Args:
            prompt: A text or token ids.
            num_tokens: Most tokens.
            extra: Of the request's body.
        """
        stream = await self.openai.completions.create(
            model="m",
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            max_tokens=num_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
        )
        found = 0
        async for chunk in stream:
            if chunk.usage is not None:
                found = chunk.usage.completion_tokens
        return found

    def _tokens(self, choice: Any, num_tokens: int) -> list[int]:
        if not self.end_bias:
            return list(choice.model_extra["token_ids"])
        ids = self.tokenizer.encode(choice.text).ids or [0]
        return (ids * num_tokens)[:num_tokens]


def _value(choice: Any) -> float:
    return math.exp(choice.logprobs.token_logprobs[0])
