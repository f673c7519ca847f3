"""Completions of texts: what ``/v1/completions`` of a server runs.

A program of yours that is deployed as ``openai_completions`` takes its place.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inferlet_py import (
    BadArgumentError,
    Context,
    LimitError,
    Processor,
    Sampler,
    UnsupportedError,
    inferlet,
    open_nursery,
    send,
)

SMALLEST_TOP_P = 1e-6
"""A sampler takes no 0, which is meant to keep the most likely token alone."""


class RefusedError(Exception):
    """The request cannot be served: the client is told why, and which parameter it is."""

    def __init__(
        self, message: str, *, param: str, code: str = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


class Wanted:
    """What is asked for; see the arguments of the program.

    No dataclass: its methods would be compiled at each launch.
    """

    def __init__(
        self,
        max_tokens: int,
        stop: list[str],
        temperature: float,
        top_p: float,
        seed: int | None,
        presence_penalty: float,
        frequency_penalty: float,
        bias: dict[int, float],
        logprobs: int | None,
        echo: bool,
    ) -> None:
        self.max_tokens, self.stop = max_tokens, stop
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.bias, self.logprobs, self.echo = bias, logprobs, echo

    async def processor(self, model: str) -> Processor | None:
        """Make what changes the logits of a choice; None if nothing does."""
        if not (self.bias or self.presence_penalty or self.frequency_penalty):
            return None
        try:
            return await Processor.create(
                bias=self.bias,
                presence_penalty=self.presence_penalty,
                frequency_penalty=self.frequency_penalty,
                model=model,
            )
        except (BadArgumentError, LimitError, UnsupportedError) as error:
            param = "logit_bias" if self.bias else "presence_penalty"
            raise RefusedError(str(error), param=param) from error


@inferlet
async def main(
    prompt: Sequence[str | list[int]],
    model: str = "",
    max_tokens: int = 16,
    n: int = 1,
    stop: Sequence[str] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[str, float] | None = None,
    logprobs: int | None = None,
    echo: bool = False,
) -> None:
    """Go on with texts.

    Args:
        prompt: Texts, or lists of tokens; each has ``n`` choices, in order.
        model: Name of a model of the server; its default one without.
        max_tokens: Most tokens of a choice.
        n: How many choices of each.
        stop: Strings that end a choice.
        temperature: 0 always takes the most likely token.
        top_p: Keep the smallest set of tokens with at least this probability.
        seed: Makes the choices repeatable.
        presence_penalty: Subtracted once for each token that a choice has already.
        frequency_penalty: Subtracted for each time that a choice has the token.
        logit_bias: By token id, what is added to its logit.
        logprobs: Tell the log-probabilities of the tokens, and of so many of the most likely.
        echo: A choice begins with its prompt.
    """
    wanted = Wanted(
        max_tokens,
        list(stop),
        temperature,
        top_p,
        seed,
        presence_penalty,
        frequency_penalty,
        {int(token): amount for token, amount in (logit_bias or {}).items()},
        logprobs,
        echo,
    )
    usage = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0}
    try:
        if len(prompt) == 1:
            await _complete(prompt[0], 0, n, model, wanted, usage)
        else:
            async with open_nursery() as nursery:
                for index, one in enumerate(prompt):
                    first = index * n
                    nursery.start_soon(_complete, one, first, n, model, wanted, usage)
        await _emit(usage=usage)
    except* RefusedError as group:
        error = group.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        await _emit(error=vars(error))


async def _complete(
    prompt: str | list[int],
    first: int,
    count: int,
    model: str,
    wanted: Wanted,
    usage: dict[str, int],
) -> None:
    """Tell the choices of one prompt, which is computed once."""
    async with Context(model) as context:
        info = context.model.info
        tokens = (
            context.model.tokenize(prompt, special=True)
            if isinstance(prompt, str)
            else prompt
        )
        if not tokens:
            raise RefusedError(
                "the prompt has no token: give at least one", param="prompt"
            )
        if len(tokens) + wanted.max_tokens > info.max_positions:
            raise RefusedError(
                f"the model has a context of {info.max_positions} tokens, but the prompt "
                f"takes {len(tokens)}, and {wanted.max_tokens} are asked for: shorten it, or "
                "ask for fewer",
                param="prompt",
                code="context_length_exceeded",
            )
        try:
            await context.fill(tokens, reuse=True)
        except BadArgumentError as error:
            raise RefusedError(str(error), param="prompt") from error
        usage["prompt_tokens"] += len(tokens)
        usage["cached_tokens"] += context.num_reused
        text = context.model.detokenize(tokens) if wanted.echo else ""
        contexts = [context, *(context.fork() for _ in range(count - 1))]
        try:
            if count == 1:
                await _choose(context, first, wanted, usage, text)
            else:
                async with open_nursery() as nursery:
                    for index, one in enumerate(contexts, first):
                        nursery.start_soon(_choose, one, index, wanted, usage, text)
        finally:
            for one in contexts[1:]:
                one.close()


async def _choose(
    context: Context, index: int, wanted: Wanted, usage: dict[str, int], text: str
) -> None:
    """Generate one choice, and tell it as it comes."""
    if text:
        await _emit(choice=index, text=text)
    processor = await wanted.processor(context.model.name)
    try:
        generation = context.generate(
            max_tokens=wanted.max_tokens,
            sampler=Sampler(
                temperature=wanted.temperature,
                top_p=max(wanted.top_p, SMALLEST_TOP_P),
                seed=None if wanted.seed is None else wanted.seed + index,
            ),
            stop=wanted.stop,
            logprobs=wanted.logprobs is not None,
            top_logprobs=wanted.logprobs or 0,
            processor=processor,
        )
        if wanted.logprobs is None:
            await generation.send({"choice": index})
        async for chunk in generation:
            if chunk.token_ids:
                top = chunk.top_logprobs or [()] * len(chunk.token_ids)
                tokens = zip(chunk.token_ids, chunk.logprobs or (), top, strict=True)
                await _emit(choice=index, tokens=list(tokens))
            if chunk.text:
                await _emit(choice=index, text=chunk.text)
    finally:
        if processor is not None:
            processor.close()
    usage["completion_tokens"] += len(generation.token_ids)
    await _emit(choice=index, finish=generation.finish_reason)


async def _emit(**event: Any) -> None:
    await send(json.dumps(event).encode())
