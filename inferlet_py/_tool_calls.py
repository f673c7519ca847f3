"""Calls of tools out of a text as a model writes it, in the formats that models were taught."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from inferlet_py._json import JsonReader, WrongJsonError
from inferlet_py._tools import Tool, ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ToolCallParser", "ToolFormat", "guess_tool_format"]

ToolFormat = Literal["hermes", "llama-3", "mistral", "react"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_PYTHON_TAG, _TOOL_CALLS, _ARGUMENTS = "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]"
_ACTION = "Action: "
_SPACE = " \t\r\n"
_SHOWN = 100


def guess_tool_format(template: str) -> ToolFormat:
    """Return the format that a chat template points to: the one with ``<tool_call>`` at worst."""
    if _OPEN not in template:
        if _TOOL_CALLS in template:
            return "mistral"
        if _PYTHON_TAG in template or "<|start_header_id|>" in template:
            return "llama-3"
    return "hermes"


class ToolCallParser:
    """Takes a text apart, as it comes, into what is to be shown and calls of tools.

    A call is there as soon as its JSON is complete. One that cannot be read is a call with an
    ``error``, so that the model can be told. Whitespace around calls is dropped; a text without
    calls comes out as it went in.

    Args:
        tool_format: ``hermes`` (also Qwen and pie-tiny): JSON between ``<tool_call>`` and
            ``</tool_call>``. ``llama-3``: the message is JSON with ``name`` and ``parameters``.
            ``mistral``: ``[TOOL_CALLS]`` and a list of JSON objects, or a name and JSON; since
            the marker is a special token, which has no text, a message that begins with such a
            list will do. ``react``: lines ``Action: name[argument]``, as pie-tiny writes them.
        tools: Their parameters have the names that ``react`` lacks.

    Raises:
        ValueError: There is no such format.
    """

    def __init__(
        self, tool_format: ToolFormat = "hermes", tools: Iterable[Tool[..., Any]] = ()
    ) -> None:
        formats = get_args(ToolFormat)
        if tool_format not in formats:
            raise ValueError(
                f"tool_format is one of {', '.join(formats)}, got {tool_format!r}"
            )
        self._format = tool_format
        self._tools = {tool.name: tool for tool in tools}
        self._buffer: str = ""
        self._space: str = ""  # after what was shown: it is dropped if a call follows
        self._is_after_call = False
        self._may_be_text = False  # JSON without a marker may be an answer
        self._start: str = ""  # what stood before such JSON
        self._error: str = ""
        self._items: list[str | ToolCall] = []
        self._reader = JsonReader()
        self._raw: str = ""  # what the reader has read
        self._name: str = ""  # of a call that stands before its arguments
        is_marked = tool_format in ("hermes", "react")
        self._step = self._read_text if is_marked else self._read_start

    def add(self, text: str) -> list[str | ToolCall]:
        """Return what became certain: texts to show, and calls, in order."""
        self._buffer += text
        while self._step(is_last=False):
            pass
        return self._take_items()

    def finish(self) -> list[str | ToolCall]:
        """Return the rest; a call that was cut short has an error."""
        while self._step(is_last=True):
            pass
        if self._space and not self._is_after_call:
            self._items.append(self._space)
        return self._take_items()

    def _take_items(self) -> list[str | ToolCall]:
        items, self._items = self._items, []
        shown: list[str | ToolCall] = []
        for item in items:
            if isinstance(item, str) and shown and isinstance(shown[-1], str):
                shown[-1] += item
            else:
                shown.append(item)
        return shown

    # ---- text ------------------------------------------------------------------------------

    def _read_text(self, *, is_last: bool) -> bool:
        """Show what comes up to a call. Each step says whether another one may do more."""
        if self._format == "react":
            return self._read_line(is_last=is_last)
        marker = {"hermes": _OPEN, "mistral": _TOOL_CALLS}.get(self._format)
        at = self._buffer.find(marker) if marker else -1
        if marker and at >= 0:
            self._show(self._buffer[:at])
            self._buffer = self._buffer[at + len(marker) :]
            is_hermes = self._format == "hermes"
            self._step = self._read_object if is_hermes else self._read_marked
            return True
        held = 0 if is_last or not marker else _overlap(self._buffer, marker)
        end = len(self._buffer) - held
        self._show(self._buffer[:end])
        self._buffer = self._buffer[end:]
        return False

    def _show(self, text: str) -> None:
        body = text.rstrip(_SPACE)
        if not body:
            self._space += text
            return
        shown = self._space + body
        self._items.append(shown.lstrip(_SPACE) if self._is_after_call else shown)
        self._space, self._is_after_call = text[len(body) :], False

    def _emit(self, call: ToolCall) -> None:
        self._items.append(call)
        self._space, self._is_after_call, self._may_be_text = "", True, False

    # ---- objects ---------------------------------------------------------------------------

    def _read_object(self, *, is_last: bool) -> bool:
        """Read the JSON of a call up to its end."""
        error = ""
        if not self._raw:
            self._skip_space()
            if self._buffer and not self._buffer.startswith("{"):
                self._end_object("expected an object")
                return True
        while self._buffer and not self._reader.is_complete:
            # An object can only end with a brace.
            size = self._buffer.find("}") + 1 or len(self._buffer)
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            self._raw += piece
            try:
                self._reader.feed(piece)
            except WrongJsonError as found:
                error = f"expected {found.expected} at character {found.position}"
                break
        if not error and not self._reader.is_complete:
            if not is_last:
                return False
            error = "it was cut short" if self._raw else "there is nothing in it"
        self._end_object(error)
        return True

    def _end_object(self, error: str) -> None:
        value, raw, name = self._reader.value, self._raw, self._name
        self._reader, self._raw, self._name = JsonReader(), "", ""
        if self._may_be_text and (error or not _is_call(value)):
            self._step = self._read_text
            self._show(self._start + raw)
            return
        if error:
            self._raw, self._error = raw, error
            self._step = self._skip_object
            return
        self._emit(_to_call({"name": name, "arguments": value} if name else value, raw))
        self._step = {
            "hermes": self._read_close,
            "llama-3": self._read_next,
            "mistral": self._read_text if name else self._read_list,
        }[self._format]

    def _skip_object(self, *, is_last: bool) -> bool:
        """Go on behind a call that cannot be read; what has no end takes all the rest."""
        end = _CLOSE if self._format == "hermes" else _TOOL_CALLS
        self._raw, self._buffer = self._raw + self._buffer, ""
        at = self._raw.find(end)
        if at < 0 and not is_last:
            return False
        body = self._raw if at < 0 else self._raw[:at]
        if at >= 0:
            rest = self._raw[at + len(end) :]
            self._buffer = rest if self._format == "hermes" else end + rest
        self._raw = ""
        self._step = self._read_text
        shown = body.strip()[:_SHOWN]
        self._emit(
            ToolCall("", {}, error=f"the call is no JSON: {self._error}: {shown}")
        )
        return True

    # ---- what stands around them -----------------------------------------------------------

    def _skip_space(self) -> None:
        self._buffer = self._buffer.lstrip(_SPACE)

    def _read_close(self, *, is_last: bool) -> bool:
        self._skip_space()
        if not is_last and _CLOSE.startswith(self._buffer) and self._buffer != _CLOSE:
            return False
        self._buffer = self._buffer.removeprefix(_CLOSE)
        self._step = self._read_text
        return True

    def _read_start(self, *, is_last: bool) -> bool:
        """Look at the beginning of a message that may be nothing but calls."""
        start = self._buffer.lstrip(_SPACE)
        is_llama = self._format == "llama-3"
        marker, bracket = (_PYTHON_TAG, "{") if is_llama else (_TOOL_CALLS, "[")
        if not is_last and marker.startswith(start) and start != marker:
            return False
        rest = start.removeprefix(marker).lstrip(_SPACE) if is_llama else start
        if not rest and not is_last:
            return False
        self._step = self._read_text
        if rest.startswith(bracket):
            rest = rest if is_llama else rest[1:].lstrip(_SPACE)
            if not rest and not is_last:
                self._step = self._read_start
                return False
            if rest.startswith("{"):
                self._start = self._buffer.removesuffix(rest)
                self._buffer, self._may_be_text = rest, True
                self._step = self._read_object
        return True

    def _read_next(self, *, is_last: bool) -> bool:
        """Look for another call after one of Llama 3's, behind a semicolon or none."""
        self._buffer = self._buffer.lstrip(_SPACE + ";")
        if not self._buffer:
            return False
        self._start, self._may_be_text = "", True
        is_object = self._buffer.startswith("{")
        self._step = self._read_object if is_object else self._read_text
        return True

    def _read_marked(self, *, is_last: bool) -> bool:
        """Look at what follows Mistral's marker: a list, or a name and its arguments."""
        self._skip_space()
        if self._buffer.startswith("["):
            self._buffer = self._buffer[1:]
            self._step = self._read_list
            return True
        at = self._buffer.find("{")
        if at < 0:
            if is_last and self._buffer:
                self._error = "it has no arguments"
                self._step = self._skip_object
            return is_last and bool(self._buffer)
        self._name = self._buffer[:at].strip().removesuffix(_ARGUMENTS)
        self._buffer = self._buffer[at:]
        self._step = self._read_object
        return True

    def _read_list(self, *, is_last: bool) -> bool:
        self._buffer = self._buffer.lstrip(_SPACE + ",")
        if not self._buffer:
            return False
        if self._buffer.startswith("]"):
            self._buffer = self._buffer[1:]
            self._step = self._read_text
        else:
            self._step = self._read_object
        return True

    # ---- ReACT -----------------------------------------------------------------------------

    def _read_line(self, *, is_last: bool) -> bool:
        line, end, rest = self._buffer.partition("\n")
        is_action = line.startswith(_ACTION)
        if not end and not is_last and (is_action or _ACTION.startswith(line)):
            return False
        name, bracket, argument = line.removeprefix(_ACTION).partition("[")
        if is_action and bracket and argument.rstrip().endswith("]"):
            self._emit(self._to_action(name, argument.rstrip()[:-1]))
            self._buffer = rest
            return bool(rest)
        if not end:
            # The line goes on as text, so that its rest cannot be taken for an action.
            if self._buffer:
                self._show(self._buffer)
                self._step = self._read_rest_of_line
            self._buffer = ""
            return False
        self._show(line + end)
        self._buffer = rest
        return True

    def _read_rest_of_line(self, *, is_last: bool) -> bool:
        line, end, rest = self._buffer.partition("\n")
        self._show(line + end)
        self._buffer = rest
        if end:
            self._step = self._read_text
        return bool(end)

    def _to_action(self, name: str, argument: str) -> ToolCall:
        tool = self._tools.get(name)
        properties: Mapping[str, Any] = (
            {} if tool is None else tool.parameters.get("properties", {})
        )
        names = list(properties) or ["input"]
        values = argument.split(", ", len(names) - 1)
        if len(values) < len(names):
            return ToolCall(name, {}, error=f"{name} takes {', '.join(names)}")
        arguments = {
            key: _as_type(value, properties.get(key, {}).get("type"))
            for key, value in zip(names, values, strict=True)
        }
        return ToolCall(name, arguments)


def _overlap(text: str, marker: str) -> int:
    """Return how many characters at the end of ``text`` begin ``marker``."""
    longest = min(len(text), len(marker) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(marker[:n])), 0)


def _is_call(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    fields = cast("dict[str, Any]", value)
    return isinstance(fields.get("name"), str) and (
        "parameters" in fields or "arguments" in fields
    )


def _to_call(value: object, raw: str) -> ToolCall:
    """Return the call that an object is, or one with an error."""
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    name = fields.get("name")
    arguments: Any = fields.get("arguments", fields.get("parameters", {}))
    if isinstance(arguments, str):  # JSON in JSON, as OpenAI's interface has it
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        wanted = '{"name": ..., "arguments": {...}}'
        error = f"a call should be {wanted}, got {raw.strip()[:_SHOWN]}"
        return ToolCall(name if isinstance(name, str) else "", {}, error=error)
    call_id = fields.get("id")
    given = cast("dict[str, Any]", arguments)
    return ToolCall(name, given, call_id if isinstance(call_id, str) else "")


def _as_type(text: str, kind: object) -> Any:
    """Return what a text is as a type of JSON Schema; the text itself where it is none."""
    if kind in ("number", "integer", "boolean"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text
