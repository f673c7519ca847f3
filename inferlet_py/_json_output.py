"""JSON of a model, as values of Python: partial ones as they come, and the whole of a type."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from inferlet_py._generation import Chunk
from inferlet_py._json import JsonReader, WrongJsonError
from inferlet_py._reply import Reply
from inferlet_py._typed import MismatchError, fit, name_of, schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Mapping

    from inferlet_py._context import Context

__all__ = ["JsonOutput", "WrongValueError", "generate_json", "json_schema", "read_json"]

T = TypeVar("T")

_CONSTRAINTS = {"grammar", "json_schema", "processor", "regex"}
"""Arguments of ``Context.generate`` that choose what may come; it takes one of them."""


class WrongValueError(ValueError):
    """JSON is not of the type that was asked for.

    Attributes:
        value: What came.
    """

    __module__ = "inferlet_py"

    def __init__(self, message: str, value: Any) -> None:
        super().__init__(message)
        self.value = value


class JsonOutput(Generic[T]):
    """An asynchronous iterator over partial values. Made by ``generate_json`` or ``read_json``.

    A partial value is of plain objects and lists, each time the same ones with more in them; the
    last string may be unfinished. ``await value()`` gives the whole, of the type that was asked
    for.
    """

    def __init__(
        self, source: AsyncIterable[str | Chunk], kind: type[T], *, reads_rest: bool
    ) -> None:
        self._source, self._kind = aiter(source), kind
        self._reader = JsonReader()
        self._opening = _opening_of(kind)
        self._text = ""
        self._reads_rest = reads_rest
        self._has_begun = not self._opening
        self._is_done = False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        while not self._is_done:
            try:
                piece = await anext(self._source)
            except StopAsyncIteration:
                self._is_done = True
                break
            if self._feed(piece.text if isinstance(piece, Chunk) else piece):
                return self._reader.value
        raise StopAsyncIteration

    async def value(self) -> T:
        """Return the whole value.

        Raises:
            WrongJsonError: The text is no JSON, or ends before that does.
            WrongValueError: The value is not of the type.
        """
        async for _ in self:
            pass
        if not self._has_begun:
            raise WrongJsonError(self._opening, self._text, 0)
        return _convert(self._reader.finish(), self._kind)

    def _feed(self, text: str) -> bool:
        """Read more, and say whether there is more to see."""
        if self._reader.is_complete:
            return False  # what stands behind it, as the end of a Markdown block
        if not self._has_begun:
            self._text += text
            at = self._text.find(self._opening)
            if at < 0:
                return False
            self._has_begun, text = True, self._text[at:]
        is_whole = _feed(self._reader, text, can_end=bool(self._opening))
        if is_whole and self._opening and not self._reads_rest:
            self._is_done = True
        return bool(text)


def _feed(reader: JsonReader, text: str, *, can_end: bool) -> bool:
    """Feed a text, or as much as completes the value if something may follow that."""
    while text and not (can_end and reader.is_complete):
        # Up to the next character that may complete it.
        ends = [at + 1 for end in "]}" if (at := text.find(end)) >= 0]
        size = min(ends, default=len(text)) if can_end else len(text)
        reader.feed(text[:size])
        text = text[size:]
    return reader.is_complete


def read_json(source: AsyncIterable[str | Chunk], kind: type[T]) -> JsonOutput[T]:
    """Read a value of a type from a text as it comes.

    What stands before the first brace (or bracket, of a list) and behind the end is left out, as
    the marks of a Markdown block.

    Args:
        source: A generation, a reply of a chat, which is read to its end, or any pieces of text.
        kind: A dataclass, a TypedDict, ``list[...]``, or anything else that JSON can carry.
    """
    return JsonOutput(source, kind, reads_rest=isinstance(source, Reply))


def generate_json(
    context: Context,
    kind: type[T],
    *,
    max_tokens: int = 512,
    is_constrained: bool = True,
    **options: Any,
) -> JsonOutput[T]:
    """Let the model go on with JSON of a type: iterate over partial values, or await ``value()``.

    A model with the trait ``grammar`` can write nothing else. Still the prompt should ask for it,
    and may show :func:`json_schema` of the type: what fits need not make sense.

    Args:
        context: What it goes on from. The generation ends with the value.
        kind: A dataclass, a TypedDict, ``list[...]``, or anything else that JSON can carry.
        max_tokens: Most tokens to generate; a value that needs more is cut short.
        is_constrained: Keep the model to the schema where it can be; not where the options have a
            constraint of their own.
        options: As of ``Context.generate``.
    """
    can_constrain = "grammar" in context.model.info.traits
    if is_constrained and can_constrain and not _CONSTRAINTS & options.keys():
        options["json_schema"] = json_schema(kind)
    generation = context.generate(max_tokens=max_tokens, **options)
    return JsonOutput(generation, kind, reads_rest=False)


def json_schema(kind: Any) -> dict[str, Any]:
    """Return the JSON Schema of a type.

    Raises:
        SignatureError: JSON cannot carry it.
    """
    return schema_of(kind, name_of(kind))


def _opening_of(kind: Any) -> str:
    """Return what a value of a type begins with, if that is always the same."""
    schema: Mapping[str, Any] = schema_of(kind, name_of(kind))
    return {"object": "{", "array": "["}.get(str(schema.get("type")), "")


def _convert(value: Any, kind: type[T]) -> T:
    try:
        return cast("T", fit(value, kind))
    except MismatchError as error:
        path, wanted, found = error.path, error.wanted, error.value
    shown = json.dumps(found, ensure_ascii=False)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    where = f"at {path}: " if path else ""
    raise WrongValueError(f"{where}expected {wanted}, got {shown}", value)
