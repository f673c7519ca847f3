"""The process that renders chats: one JSON object a line in, and one out.

It is started by :mod:`pie_trio.application.chat.renderer`, which ends it where a template takes too
long; what it may allocate is limited here.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any

from pie_trio.application.chat.templates import (
    TemplateFailedError,
    TooLongError,
    render_template,
)

__all__ = ["WrongChatError", "answer", "main"]

MAX_MEMORY_BYTES = 512 << 20
MAX_SHOWN = 80


def answer(request: dict[str, Any]) -> dict[str, str]:
    """Return ``text``, or ``error`` with what is wrong, or ``too_long``.

    Args:
        request: A :class:`~pie_trio.application.chat.renderer.RenderRequest` as an object.
    """
    try:
        text = render_template(
            request["template"],
            _read_variables(request),
            now=datetime.fromisoformat(request["now"]),
            max_characters=request["max_characters"],
        )
    except WrongChatError as error:
        return {"error": str(error)}
    except TemplateFailedError as error:
        return {"error": f"the chat template failed: {error}"}
    except TooLongError:
        return {"too_long": ""}
    # A lone surrogate, from a program or by an escape in a template, is no text.
    return {"text": text.encode(errors="replace").decode()}


class WrongChatError(ValueError):
    """What is to be rendered is no chat."""


def _read_variables(request: dict[str, Any]) -> dict[str, Any]:
    messages = _parse(request, "messages", list)
    for message in messages:
        if not isinstance(message, dict) or "role" not in message:
            raise WrongChatError(
                "a message should be an object with role and content, but one is "
                f"{_shorten(json.dumps(message))}"
            )
    return {
        **request["special_tokens"],
        "documents": None,
        **(_parse(request, "variables", dict) if request["variables"] else {}),
        "messages": messages,
        "tools": _parse(request, "tools", list) if request["tools"] else None,
        "add_generation_prompt": request["add_generation_prompt"],
    }


def _parse(request: dict[str, Any], name: str, kind: type) -> Any:
    text: str = request[name]
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WrongChatError(
            f"{name} should be JSON ({error}): {_shorten(text)}"
        ) from None
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise WrongChatError(f"{name} should be {wanted}, got {_shorten(text)}")
    return value


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def main() -> None:
    """Answer until stdin ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        # ASCII, for an error may quote a lone surrogate, which has no UTF-8.
        answers.write(json.dumps(answer(json.loads(line))).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
