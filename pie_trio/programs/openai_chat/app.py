"""Chat completions: what ``/v1/chat/completions`` and ``/v1/responses`` of a server run.

A program of yours that is deployed as ``openai_chat`` takes its place.
"""

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from inferlet_py import (
    BadArgumentError,
    Chat,
    Chunk,
    Context,
    Grammar,
    LimitError,
    NotFoundError,
    Processor,
    Sampler,
    Tool,
    ToolCall,
    ToolCallParser,
    UnsupportedError,
    inferlet,
    open_nursery,
    send,
    tool_call_grammar,
)

SMALLEST_TOP_P = 1e-6
"""A sampler takes no 0, which is meant to keep the most likely token alone."""

END_OF_CALL = "</tool_call>"


# ---- what the server is told -----------------------------------------------------------------


class RefusedError(Exception):
    """The request cannot be served, and the client is told why.

    Attributes:
        message: What was expected and what came.
        param: Of the request.
        code: As in OpenAI's errors.
    """

    def __init__(
        self, message: str, *, param: str, code: str = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


@contextmanager
def refusing(param: str) -> Generator[None]:
    """Let what is wrong in the block be the fault of a parameter of the request."""
    try:
        yield
    except UnsupportedError as error:
        raise RefusedError(
            str(error), param=param, code="unsupported_parameter"
        ) from error
    except (BadArgumentError, LimitError, NotFoundError, ValueError) as error:
        raise RefusedError(str(error), param=param) from error


async def emit(**event: Any) -> None:
    """Send an event."""
    await send(json.dumps(event).encode())


# ---- one choice ------------------------------------------------------------------------------


class Wanted:
    """What is asked for; see the arguments of the program.

    No dataclass: its methods would be compiled at each launch.
    """

    def __init__(
        self,
        *,
        tools: list[Tool[..., Any]],
        are_strict: bool,
        tool_choice: str | dict[str, str],
        has_many_calls: bool,
        json_schema: dict[str, Any] | bool | None,
        stop: list[str],
        temperature: float,
        top_p: float,
        seed: int | None,
        presence_penalty: float,
        frequency_penalty: float,
        bias: dict[int, float],
        logprobs: bool,
        top_logprobs: int,
    ) -> None:
        self.tools, self.are_strict, self.tool_choice = tools, are_strict, tool_choice
        self.has_many_calls, self.json_schema = has_many_calls, json_schema
        self.stop, self.temperature, self.top_p = stop, temperature, top_p
        self.seed, self.bias = seed, bias
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.logprobs, self.top_logprobs = logprobs, top_logprobs
        self.max_tokens = 0
        self.tool_format: Any = "hermes"

    def sampler(self, index: int) -> Sampler:
        """Return the sampler of a choice; with a seed, each has one of its own."""
        return Sampler(
            temperature=self.temperature,
            top_p=max(self.top_p, SMALLEST_TOP_P),
            seed=None if self.seed is None else self.seed + index,
        )

    def grammar(self) -> Grammar | None:
        """Return what a choice has to match; None if it may be anything."""
        if not self.tools:
            schema = self.json_schema
            return None if schema is None else Grammar.json_schema(schema)
        named = self.tool_choice
        is_required = named != "auto"
        if not is_required and not self.are_strict and self.json_schema is None:
            return None
        tools = self.tools
        if isinstance(named, dict):
            tools = [one for one in tools if one.name == named["name"]]
        return tool_call_grammar(
            tools,
            self.tool_format,
            is_required=is_required,
            has_many=self.has_many_calls and not isinstance(named, dict),
            json_schema=self.json_schema,
        )

    async def processor(self, model: str) -> Processor | None:
        """Make what changes the logits of a choice; None if nothing does."""
        with refusing("tools" if self.tools else "response_format"):
            grammar = self.grammar()
            penalties = self.presence_penalty or self.frequency_penalty
            if grammar is None and not self.bias and not penalties:
                return None
            if grammar is not None:
                return await self._make_processor(model, grammar)
        with refusing("logit_bias" if self.bias else "presence_penalty"):
            return await self._make_processor(model, None)

    async def _make_processor(self, model: str, grammar: Grammar | None) -> Processor:
        return await Processor.create(
            grammar=grammar,
            bias=self.bias,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            model=model,
        )


class Choice:
    """One choice.

    Attributes:
        num_tokens: That it has so far, without the one that ended it.
    """

    def __init__(self, index: int, context: Context, wanted: Wanted) -> None:
        self.num_tokens = 0
        self._index, self._context, self._wanted = index, context, wanted
        self._parser = (
            ToolCallParser(wanted.tool_format, wanted.tools) if wanted.tools else None
        )
        self._num_calls = 0
        self._raw, self._num_read = "", 0

    async def write(self) -> None:
        """Generate it, and tell it as it comes."""
        wanted = self._wanted
        processor = await wanted.processor(self._context.model.name)
        try:
            generation = self._context.generate(
                max_tokens=wanted.max_tokens,
                sampler=wanted.sampler(self._index),
                stop=wanted.stop,
                logprobs=wanted.logprobs,
                top_logprobs=wanted.top_logprobs,
                processor=processor,
            )
            if self._parser is None and not wanted.logprobs:
                await generation.send({"choice": self._index})
            async for chunk in generation:
                await self._tell(chunk)
                if self._num_calls and not wanted.has_many_calls:
                    break
            self.num_tokens = len(generation.token_ids)
            reason = generation.finish_reason
            if self._parser is not None and not (
                self._num_calls and not wanted.has_many_calls
            ):
                await self._tell_items(self._parser.finish())
        finally:
            if processor is not None:
                processor.close()
        finish = "tool_calls" if self._num_calls and reason != "length" else reason
        await emit(choice=self._index, finish=finish)

    async def _tell(self, chunk: Chunk) -> None:
        if self._wanted.logprobs and chunk.token_ids:
            top = chunk.top_logprobs or [()] * len(chunk.token_ids)
            tokens = zip(chunk.token_ids, chunk.logprobs or (), top, strict=True)
            await emit(choice=self._index, tokens=list(tokens))
        if self._parser is not None:
            self._raw += chunk.text
            await self._tell_items(self._parser.add(chunk.text))
        elif chunk.text:
            await emit(choice=self._index, text=chunk.text)

    async def _tell_items(self, items: list[str | ToolCall]) -> None:
        for item in items:
            if isinstance(item, ToolCall):
                await self._tell_call(item)
            elif item:
                self._read_up_to(item)
                await emit(choice=self._index, text=item)

    async def _tell_call(self, call: ToolCall) -> None:
        if call.error:  # what cannot be read is shown as it was written
            rest = self._raw[self._num_read :]
            self._num_read = len(self._raw)
            await emit(choice=self._index, text=rest)
        elif not self._num_calls or self._wanted.has_many_calls:
            self._num_calls += 1
            self._read_up_to(END_OF_CALL)
            fields = {"name": call.name, "arguments": dict(call.arguments)}
            if call.call_id:
                fields["id"] = call.call_id
            await emit(choice=self._index, call=fields)

    def _read_up_to(self, text: str) -> None:
        """Note how much of what was written was told."""
        at = self._raw.find(text, self._num_read)
        if at >= 0:
            self._num_read = at + len(text)


# ---- all of them ------------------------------------------------------------------------------


@inferlet
async def main(
    messages: Sequence[dict[str, Any]],
    model: str = "",
    tools: Sequence[dict[str, Any]] = (),
    tool_choice: str | dict[str, str] = "auto",
    parallel_tool_calls: bool = True,
    json_schema: dict[str, Any] | bool | None = None,
    max_tokens: int | None = None,
    n: int = 1,
    stop: Sequence[str] = (),
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    logit_bias: Mapping[str, float] | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
) -> None:
    """Reply to a chat.

    Args:
        messages: With ``role`` and ``content``; ``tool_calls`` have their arguments as objects.
        model: Name of a model of the server; its default one without.
        tools: What the model may call, as OpenAI's interface has it.
        tool_choice: auto, none, required, or an object with the name of the tool to call.
        parallel_tool_calls: The model may make several calls.
        json_schema: The reply is JSON that fits this.
        max_tokens: Most tokens of a choice; as many as the model can have without.
        n: How many choices.
        stop: Strings that end a choice.
        temperature: 0 always takes the most likely token.
        top_p: Keep the smallest set of tokens with at least this probability.
        seed: Makes the choices repeatable.
        presence_penalty: Subtracted once for each token that a choice has already.
        frequency_penalty: Subtracted for each time that a choice has the token.
        logit_bias: By token id, what is added to its logit.
        logprobs: Tell the log-probabilities of the tokens.
        top_logprobs: And of so many of the most likely ones in each place.
    """
    wanted = Wanted(
        tools=[] if tool_choice == "none" else [_to_tool(one) for one in tools],
        are_strict=any(one["function"].get("strict") for one in tools),
        tool_choice=tool_choice,
        has_many_calls=parallel_tool_calls,
        json_schema=json_schema,
        stop=list(stop),
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        bias={int(token): amount for token, amount in (logit_bias or {}).items()},
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )
    try:
        async with Chat(model=model, tools=wanted.tools) as chat:
            chat.messages = list(messages)
            await _reply(chat, wanted, max_tokens=max_tokens, num_choices=n)
    except* RefusedError as group:
        # Choices are refused for the same reason, or the first reason will do.
        error = group.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        await emit(error=vars(error))


async def _reply(
    chat: Chat, wanted: Wanted, *, max_tokens: int | None, num_choices: int
) -> None:
    with refusing("messages"):
        tokens = chat.model.tokenize(chat.prompt())
    room = chat.model.info.max_positions - len(tokens)
    if room < (1 if max_tokens is None else max_tokens):
        asked = "" if max_tokens is None else f" and {max_tokens} for the reply"
        raise RefusedError(
            f"the model has a context of {chat.model.info.max_positions} tokens, but the "
            f"messages take {len(tokens)}{asked}: shorten them"
            + ("" if max_tokens is None else ", or ask for fewer"),
            param="messages" if room < 1 else "max_tokens",
            code="context_length_exceeded",
        )
    context = chat.context
    # Chats that begin alike share what was computed, and so do the choices.
    await context.fill(tokens, reuse=True)
    contexts = [context, *(context.fork() for _ in range(num_choices - 1))]
    wanted.max_tokens = room if max_tokens is None else max_tokens
    wanted.tool_format = chat.tool_format
    choices = [Choice(index, one, wanted) for index, one in enumerate(contexts)]
    try:
        if num_choices == 1:
            await choices[0].write()
        else:
            async with open_nursery() as nursery:
                for choice in choices:
                    nursery.start_soon(choice.write)
        await emit(
            usage={
                "prompt_tokens": len(tokens),
                "cached_tokens": context.num_reused,
                "completion_tokens": sum(choice.num_tokens for choice in choices),
            }
        )
        # What was said is the beginning of the next turn.
        await context.fill([], reuse=True)
    finally:
        for one in contexts[1:]:
            one.close()


def _to_tool(spec: dict[str, Any]) -> Tool[..., Any]:
    function = spec["function"]
    return Tool(
        name=function["name"],
        description=function.get("description") or "",
        parameters=function.get("parameters") or {"type": "object", "properties": {}},
        run=_run_nothing,
    )


def _run_nothing(_arguments: Mapping[str, Any]) -> None:
    raise NotImplementedError("the client runs its tools itself")
