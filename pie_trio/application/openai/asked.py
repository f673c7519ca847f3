"""What a client asks for, as a launch of a program; and what all routes have in common."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from pie_trio.application.openai.failures import OpenAIError
from pie_trio.application.openai.fields import wrong_type, wrong_value

if TYPE_CHECKING:
    from pie_trio.application.openai.fields import Fields

__all__ = ["Asked", "Kind", "read_model", "read_sampling", "read_stop"]

Kind = Literal["chat", "completions", "embeddings"]
"""What a program can serve: ``chat`` is also for ``/v1/responses``."""

MAX_CHOICES = 128
MAX_STOP_STRINGS = 4
MAX_PENALTY, MAX_BIAS = 2.0, 100.0
MAX_TEMPERATURE = 2.0
MAX_INT64 = 2**63 - 1

SAMES = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
"""Parameters with which an answer is the same as without."""


@dataclass
class Asked:
    """A request, as far as all kinds of them are alike.

    Attributes:
        model: A name of a model, or of a program that is published.
        arguments: Of the program, as far as they differ from what is usual.
        origins: The parameters that they come from, where these have other names.
        is_streamed: As server-sent events.
        has_usage: A stream ends with what was used.
        num_choices: That are answered.
    """

    model: str
    arguments: dict[str, Any] = field(default_factory=dict[str, Any])
    origins: dict[str, str] = field(default_factory=dict[str, str])
    is_streamed: bool = False
    has_usage: bool = False
    num_choices: int = 1

    def set(self, name: str, value: object, usual: object = None) -> None:
        """Set an argument, unless it says what goes without saying."""
        if value is not None and value != usual:
            self.arguments[name] = value

    def origin(self, argument: str) -> str:
        """Return the parameter that an argument comes from."""
        return self.origins.get(argument, argument)


def read_model(fields: Fields) -> Asked:
    """Return a request with the model and the parameters of its stream.

    Raises:
        OpenAIError: There is no model.
    """
    model = fields.text("model", is_required=True)
    assert model is not None, "it is required"
    asked = Asked(model, is_streamed=fields.flag("stream"))
    fields.ignore(*SAMES)
    options = fields.inner("stream_options")
    if options is not None:
        if not asked.is_streamed:
            raise OpenAIError(
                "'stream_options' needs 'stream' to be true",
                param="stream_options",
                code="invalid_value",
            )
        asked.has_usage = options.flag("include_usage")
        options.only("include_obfuscation", False, why="nothing is padded")
        options.finish()
    return asked


def read_sampling(fields: Fields, asked: Asked) -> None:
    """Read how tokens are chosen.

    Raises:
        OpenAIError: Something is out of range.
    """
    asked.set("temperature", fields.number("temperature", 0, MAX_TEMPERATURE), 1.0)
    asked.set("top_p", fields.number("top_p", 0, 1), 1.0)
    for name in ("presence_penalty", "frequency_penalty"):
        asked.set(name, fields.number(name, -MAX_PENALTY, MAX_PENALTY), 0.0)
    asked.set("seed", fields.integer("seed", -MAX_INT64 - 1, MAX_INT64))
    asked.num_choices = fields.integer("n", 1, MAX_CHOICES) or 1
    asked.set("n", asked.num_choices, 1)
    asked.set("stop", read_stop(fields), [])
    bias = fields.inner("logit_bias")
    asked.set("logit_bias", None if bias is None else _read_bias(fields), {})


def read_stop(fields: Fields) -> list[str]:
    """Read the strings that end a choice.

    Raises:
        OpenAIError: They are none, or too many.
    """
    value = fields.take("stop")
    if value is None:
        return []
    if not isinstance(value, str | list):
        raise wrong_type("stop", "a string or an array of strings", value)
    strings = [value] if isinstance(value, str) else cast("list[str]", value)
    for index, string in enumerate(cast("list[object]", strings)):
        if not isinstance(string, str):
            raise wrong_type(f"stop[{index}]", "a string", string)
        if not string:
            raise wrong_value(f"stop[{index}]", "a string that is not empty", string)
    if len(strings) > MAX_STOP_STRINGS:
        raise wrong_value("stop", f"at most {MAX_STOP_STRINGS} strings", strings)
    return strings


def _read_bias(fields: Fields) -> dict[str, float]:
    found = dict[str, float]()
    values: dict[str, object] = fields.take("logit_bias")
    for token, amount in values.items():
        where = f"logit_bias.{token}"
        if not (token.isascii() and token.isdigit()):
            raise wrong_value("logit_bias", "token ids as names", token)
        if isinstance(amount, bool) or not isinstance(amount, int | float):
            raise wrong_type(where, "a number", amount)
        if not -MAX_BIAS <= amount <= MAX_BIAS:
            raise wrong_value(where, f"{-MAX_BIAS:g} to {MAX_BIAS:g}", amount)
        found[str(int(token))] = float(amount)
    return found
