"""What programs that serve models send, read piece by piece.

A message of text is said by choice 0. A message of bytes is an event, a JSON object; all that it
may have is in :class:`Piece` and :class:`Usage`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pie_trio.application.openai.failures import OpenAIError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pie_trio.application.server.events import Event

__all__ = ["Call", "FinishReason", "Piece", "PieceDecoder", "TokenLogprob", "Usage"]

FinishReason = Literal["stop", "length", "tool_calls"]
REASONS: tuple[FinishReason, ...] = ("stop", "length", "tool_calls")
FIELDS = frozenset({"choice", "text", "tokens", "call", "finish", "embedding"})
PLAIN = frozenset({"choice", "text"})
SMALLEST_LOGPROB = -9999.0
"""What OpenAI says of a token that is as good as impossible: JSON has no infinity."""
SHOWN = 100


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token that was chosen.

    Attributes:
        token_id: Of the model.
        logprob: Its log-probability.
        top: Tokens and log-probabilities of the most likely ones in its place.
    """

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Call:
    """A tool that the client is to call.

    Attributes:
        name: Of the tool.
        arguments: A JSON object as text.
        call_id: Empty if the program has given none.
    """

    name: str
    arguments: str
    call_id: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of one choice.

    Attributes:
        choice: Which, from 0.
        text: Said by it, after what was said before.
        tokens: Chosen by it; they may come before or after their text.
        call: Made by it.
        finish: Why it ended; None while it goes on.
        embedding: What an input became.
    """

    choice: int = 0
    text: str = ""
    tokens: Sequence[TokenLogprob] = ()
    call: Call | None = None
    finish: FinishReason | None = None
    embedding: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer took, in tokens.

    Attributes:
        prompt_tokens: That came in.
        completion_tokens: That went out, without those that ended a choice.
        cached_tokens: Of those that came in, not computed again.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


class PieceDecoder:
    """Reads the events of an instance that serves a model, in order.

    Args:
        program: Name of its program, for errors.
        num_choices: That were asked for.
        origins: What the client calls the parameters that a program calls otherwise.
    """

    def __init__(
        self, program: str, num_choices: int, origins: Mapping[str, str] | None = None
    ) -> None:
        self._program, self._num_choices = program, num_choices
        self._origins = origins or {}
        self._open = set(range(num_choices))
        self._usage: Usage | None = None
        self._has_spoken = False

    def decode(self, events: Sequence[Event]) -> list[Piece | Usage]:
        """Return what the events say; the usage comes last of all.

        Raises:
            OpenAIError: The program refuses the request, or has failed, or sends what makes no
                sense.
        """
        found = list[Piece | Usage]()
        for event in events:
            if event.kind == "message":
                item = self._read_message(event)
                if isinstance(item, Usage):
                    self._usage = item
                    continue
                self._has_spoken = True
                if item.finish is not None:
                    self._open.discard(item.choice)
                found.append(item)
            elif event.kind == "error":
                raise _failed(self._program, cast("Mapping[str, Any]", event.data))
            elif event.kind == "result":
                value = cast("Mapping[str, Any]", event.data)["value"]
                if isinstance(value, str) and not self._has_spoken:
                    found.append(Piece(text=value))
            elif event.kind == "end":
                found += [Piece(index, finish="stop") for index in sorted(self._open)]
                data = cast("Mapping[str, Any]", event.data)
                found.append(self._usage or _count(data))
        return found

    def _read_message(self, event: Event) -> Piece | Usage:
        if isinstance(event.data, str):
            return Piece(text=event.data)
        data = cast("bytes", event.data)
        try:
            value = json.loads(data)
            if "error" in value:
                raise _refused(value["error"], self._origins)
            if (used := value.get("usage")) is not None:
                return Usage(**{key: int(count) for key, count in used.items()})
            if not value.keys() <= FIELDS:
                unknown = value.keys() - FIELDS
                raise ValueError(f"there is no field {min(unknown)!r}")
            return _read_piece(value, self._num_choices)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            shown = data[:SHOWN].decode("utf-8", "replace")
            raise OpenAIError(
                f"the program {self._program!r} has sent bytes that are no event of a "
                f"model: {error}: {shown}",
                code="program_failed",
                status=500,
            ) from error


def _read_piece(value: dict[str, Any], num_choices: int) -> Piece:
    choice = int(value.get("choice", 0))
    if not 0 <= choice < num_choices:
        raise ValueError(f"there are {num_choices} choices, and no number {choice}")
    if value.keys() <= PLAIN:  # as nearly all are
        return Piece(choice, str(value.get("text", "")))
    finish = value.get("finish")
    if finish is not None and finish not in REASONS:
        raise ValueError(f"finish is one of {', '.join(REASONS)}")
    call = value.get("call")
    return Piece(
        choice,
        str(value.get("text", "")),
        [
            TokenLogprob(
                int(token), _finite(logprob), [(int(i), _finite(p)) for i, p in top]
            )
            for token, logprob, top in value.get("tokens", ())
        ],
        None if call is None else _read_call(call),
        finish,
        [float(number) for number in value.get("embedding", ())],
    )


def _read_call(value: dict[str, Any]) -> Call:
    arguments = value.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return Call(str(value["name"]), text, str(value.get("id", "")))


def _finite(number: float) -> float:
    return float(number) if math.isfinite(number) else SMALLEST_LOGPROB


def _refused(value: Mapping[str, Any], origins: Mapping[str, str]) -> OpenAIError:
    param: Any = value.get("param")
    return OpenAIError(
        str(value["message"]), param=origins.get(param, param), code=value.get("code")
    )


def _failed(program: str, error: Mapping[str, Any]) -> OpenAIError:
    if error["code"] == "program-failed":
        is_argument = error["kind"].endswith("WrongArgumentError")
        kind = error["kind"].rpartition(".")[2]
        return OpenAIError(
            f"the program {program!r} has failed: {kind}: {error['message']}",
            param="model" if is_argument else None,
            code="program_failed",
            status=400 if is_argument else 500,
        )
    is_limit = error["code"] in ("limit-exceeded", "out-of-pages", "timed-out")
    return OpenAIError(
        f"the program {program!r} was ended: {error['message']}",
        code=error["code"].replace("-", "_"),
        status=429 if is_limit else 500,
    )


def _count(end: Mapping[str, Any]) -> Usage:
    """Return what an instance that says nothing of it has used."""
    sampled = int(end.get("tokens_sampled", 0))
    return Usage(max(0, int(end.get("tokens_computed", 0)) - sampled), sampled)
