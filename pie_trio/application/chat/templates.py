"""Chat templates: Jinja in a sandbox, with what templates of published models rely on.

Here is no limit of time or memory: templates are run in a process that can be ended, see
:mod:`pie_trio.application.chat.renderer`.
"""

from __future__ import annotations

import json
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from jinja2.nodes import Node
    from jinja2.parser import Parser

__all__ = ["TemplateFailedError", "TooLongError", "render_template"]

CACHE_SIZE = 64


class TemplateFailedError(Exception):
    """A template refused what it was given, or cannot be run."""


class TooLongError(Exception):
    """A template rendered more than it may."""


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks what training counts; here it is text."""

    tags = {"generation"}  # noqa: RUF012 - declared as a set

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_render_body")
        return CallBlock(call, [], [], body).set_lineno(line)

    def _render_body(self, caller: Callable[[], str]) -> str:
        return caller()


class _PlainDict:
    """``dict`` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


def render_template(
    template: str,
    variables: Mapping[str, Any],
    *,
    now: datetime,
    max_characters: int,
) -> str:
    """Return what a template makes of its variables.

    Args:
        template: Jinja.
        variables: ``messages`` and whatever else it reads; plain values of JSON.
        now: What ``strftime_now`` tells.
        max_characters: Of the text.

    Raises:
        TemplateFailedError: It called ``raise_exception``, whose message this is, or something is
            wrong with it.
        TooLongError: The text would be longer.
    """
    pieces: list[str] = []
    num_characters = 0
    try:
        compiled = _compile(template)
        clock = {"strftime_now": partial(_format_time, now)}
        for piece in compiled.generate({**clock, **variables}):
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters > max_characters:
                raise TooLongError
    except TooLongError:
        raise
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFailedError(
            f"it is no template of Jinja: {error.message}, in line {error.lineno}"
        ) from error
    except _RaisedByTemplateError as error:
        raise TemplateFailedError(str(error)) from error
    except Exception as error:
        line = _line_of(error)
        where = "" if line is None else f", in line {line} of the template"
        # Memory that ran out has no text.
        raise TemplateFailedError(
            f"{str(error) or type(error).__name__}{where}"
        ) from error
    return "".join(pieces)


class _RaisedByTemplateError(jinja2.TemplateError):
    pass


def _raise_exception(message: object) -> None:
    raise _RaisedByTemplateError(str(message))


def _format_time(now: datetime, pattern: str) -> str:
    return now.strftime(pattern)


def _to_json(
    value: Any,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as models have seen it: Jinja's own sorts keys, and escapes for HTML."""
    pair = None if separators is None else (separators[0], separators[1])
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=pair,
        sort_keys=sort_keys,
    )


@lru_cache(maxsize=CACHE_SIZE)
def _compile(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    more = {"raise_exception": _raise_exception, "dict": _PlainDict()}
    return environment.from_string(template, globals=more)


def _line_of(error: Exception) -> int | None:
    """Return the line of the template that an error comes from: Jinja rewrites tracebacks."""
    traceback, line = error.__traceback__, None
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line
