"""Requests of chats, completions and embeddings, as launches of programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from pie_trio.application.openai.asked import Asked, read_model, read_sampling
from pie_trio.application.openai.failures import OpenAIError, refuse_unsupported
from pie_trio.application.openai.fields import Fields, wrong_type, wrong_value
from pie_trio.application.openai.messages import read_messages
from pie_trio.application.openai.tools import read_format, read_tools

__all__ = [
    "EmbeddingsAsked",
    "read_chat",
    "read_completion",
    "read_embeddings",
    "read_top_logprobs",
]

MAX_TOP_LOGPROBS = 20
MAX_COMPLETION_LOGPROBS = 5
MAX_INPUTS = 2048
NOT_STORED = "nothing is kept after the answer"
MODEL_DECIDES = "the model has no such setting"


def read_chat(body: object) -> Asked:
    """Read a request to ``/v1/chat/completions``.

    Raises:
        OpenAIError: It makes no sense, or asks for what is not supported.
    """
    fields = Fields(body)
    asked = read_model(fields)
    asked.arguments["messages"] = read_messages(_require(fields, "messages"))
    _read_limit(fields, asked)
    read_sampling(fields, asked)
    has_logprobs = fields.flag("logprobs")
    asked.set("logprobs", has_logprobs, False)
    read_top_logprobs(fields, asked, has_logprobs=has_logprobs)
    read_tools(fields, asked, is_flat=False)
    read_format(fields.inner("response_format"), asked, is_flat=False)
    asked.origins["json_schema"] = "response_format"
    fields.ignore("metadata", "prompt_cache_options")
    fields.only("service_tier", "auto", "default", why="all requests are alike")
    fields.only("store", False, why=NOT_STORED)
    fields.only("modalities", ["text"], why="replies are texts")
    fields.only("verbosity", "medium", why=MODEL_DECIDES)
    for name in ("reasoning_effort", "web_search_options", "audio", "moderation"):
        fields.only(name, why=MODEL_DECIDES)
    fields.only("prediction", why="there is no speculation on a prediction")
    for name in ("functions", "function_call"):
        fields.only(name, why="use 'tools' and 'tool_choice'")
    fields.finish()
    return asked


def read_top_logprobs(fields: Fields, asked: Asked, *, has_logprobs: bool) -> None:
    """Read how many alternatives are told.

    Raises:
        OpenAIError: They are told where no log-probabilities are, or are too many.
    """
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not has_logprobs:
        raise OpenAIError(
            "'top_logprobs' needs 'logprobs' to be true",
            param="top_logprobs",
            code="invalid_value",
        )
    asked.set("top_logprobs", top, 0)


def _read_limit(fields: Fields, asked: Asked) -> None:
    limit = fields.integer("max_completion_tokens", 1)
    older = fields.integer("max_tokens", 1)
    if limit is not None and older is not None:
        raise OpenAIError(
            "'max_tokens' and 'max_completion_tokens' are the same: set one of them",
            param="max_tokens",
            code="invalid_value",
        )
    asked.set("max_tokens", older if limit is None else limit)
    if limit is not None:
        asked.origins["max_tokens"] = "max_completion_tokens"


def read_completion(body: object) -> Asked:
    """Read a request to ``/v1/completions``.

    Raises:
        OpenAIError: It makes no sense, or asks for what is not supported.
    """
    fields = Fields(body)
    asked = read_model(fields)
    prompts = _read_texts(fields, "prompt")
    asked.arguments["prompt"] = prompts
    asked.set("max_tokens", fields.integer("max_tokens", 0), 16)
    read_sampling(fields, asked)
    logprobs = fields.integer("logprobs", 0, MAX_COMPLETION_LOGPROBS)
    asked.set("logprobs", logprobs)
    has_echo = fields.flag("echo")
    asked.set("echo", has_echo, False)
    if has_echo and logprobs is not None:
        raise refuse_unsupported("echo", "the tokens of a prompt have no 'logprobs'")
    fields.only("suffix", "", why="the model only goes on with a text")
    best = asked.num_choices
    fields.only("best_of", best, why="all 'n' choices are answered, and no others made")
    fields.finish()
    asked.num_choices = best * len(prompts)
    if asked.num_choices > MAX_INPUTS:
        raise wrong_value("prompt", f"at most {MAX_INPUTS} choices", asked.num_choices)
    return asked


@dataclass
class EmbeddingsAsked(Asked):
    """A request for embeddings.

    Attributes:
        is_base64: They are 32-bit floats in base 64, low byte first.
        dimensions: As many as they have to have; None for as many as there are.
    """

    is_base64: bool = False
    dimensions: int | None = None


def read_embeddings(body: object) -> EmbeddingsAsked:
    """Read a request to ``/v1/embeddings``.

    Raises:
        OpenAIError: It makes no sense, or asks for what is not supported.
    """
    fields = Fields(body)
    model = fields.text("model", is_required=True)
    assert model is not None, "it is required"
    asked = EmbeddingsAsked(model)
    texts = _read_texts(fields, "input")
    if len(texts) > MAX_INPUTS:
        raise wrong_value("input", f"at most {MAX_INPUTS} texts", len(texts))
    asked.arguments["input"] = texts
    asked.num_choices = len(texts)
    asked.set("pooling", fields.choice("pooling", ("mean", "last")), "mean")
    encoding = fields.choice("encoding_format", ("float", "base64"))
    asked.is_base64 = encoding == "base64"
    asked.dimensions = fields.integer("dimensions", 1)
    fields.ignore("user")
    fields.finish()
    return asked


def _require(fields: Fields, key: str) -> list[Any]:
    found = fields.sequence(key)
    if found is None:
        raise OpenAIError(
            f"you must provide {key!r}", param=key, code="missing_required_parameter"
        )
    return found


def _read_texts(fields: Fields, key: str) -> list[str | list[int]]:
    """Return texts, or lists of tokens; one of either is a list of one."""
    value = fields.take(key)
    if isinstance(value, str):
        return [value]
    items = _require(fields, key)
    if not items:
        raise wrong_value(key, "a string, or an array that is not empty", items)
    if all(_is_token(item) for item in items):
        return [cast("list[int]", items)]
    for index, item in enumerate(cast("list[object]", items)):
        is_text = isinstance(item, str) and isinstance(items[0], str)
        is_tokens = isinstance(item, list) and isinstance(items[0], list)
        tokens = cast("list[object]", item)
        if not is_text and not (is_tokens and tokens and all(map(_is_token, tokens))):
            raise wrong_type(
                f"{key}[{index}]", "strings, or tokens, or arrays of tokens", items
            )
    return items


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
