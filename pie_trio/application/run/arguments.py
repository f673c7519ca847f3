"""The arguments of a program on the command line, from the JSON Schema of its signature."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["parse_program_arguments"]


def parse_program_arguments(
    description: Mapping[str, Any], arguments: Sequence[str], *, program: str
) -> dict[str, Any]:
    """Turn flags into a program's arguments; only those that were given are in the result.

    Args:
        description: What the program says of itself: ``documentation`` and ``arguments``.
        arguments: From the command line, after the program.
        program: What usage messages call it.

    Raises:
        SystemExit: 2 after a usage error, 0 after ``--help``; either was printed.
    """
    parser = argparse.ArgumentParser(
        prog=program,
        description=description["documentation"] or None,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        conflict_handler="resolve",  # a parameter named help takes --help; -h stays
    )
    schema = description["arguments"]
    for name, parameter in schema["properties"].items():
        _add(parser, name, parameter, is_required=name in schema["required"])
    return vars(parser.parse_args(arguments))


def _add(
    parser: argparse.ArgumentParser,
    name: str,
    schema: Mapping[str, Any],
    *,
    is_required: bool,
) -> None:
    schema = _without_null(schema)
    settings: dict[str, Any] = {"dest": name, "required": is_required}
    kind = _kind(schema)
    if kind == "boolean":
        settings["action"] = argparse.BooleanOptionalAction
    elif kind == "array":
        settings["nargs"] = "*"
        settings["type"] = _converter(schema["items"])
        settings["metavar"] = name.upper()
    else:
        settings["type"] = _converter(schema)
        settings["metavar"] = _metavar(name, schema)
        if "enum" in schema:
            settings["choices"] = schema["enum"]
    notes = [schema.get("description", "")]
    if "default" in schema:
        notes.append(f"(default: {json.dumps(schema['default'], ensure_ascii=False)})")
    elif is_required:
        notes.append("(required)")
    settings["help"] = " ".join(note for note in notes if note).replace("%", "%%")
    parser.add_argument("--" + name.replace("_", "-"), **settings)


def _without_null(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema of what may be given besides null, if that is of one kind."""
    options = [
        option for option in schema.get("anyOf", []) if option.get("type") != "null"
    ]
    if len(options) != 1:
        return schema
    outer = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**outer, **options[0]}


def _kind(schema: Mapping[str, Any]) -> str | None:
    """Return the JSON type of a schema; None if it has several, or none."""
    kind: str | None = None if "anyOf" in schema else schema.get("type")
    return kind


def _metavar(name: str, schema: Mapping[str, Any]) -> str | None:
    if "enum" in schema:
        return None
    return {"integer": "INT", "number": "NUMBER", "string": "TEXT"}.get(
        _kind(schema) or "", name.upper()
    )


def _converter(schema: Mapping[str, Any]) -> Callable[[str], Any]:
    schema = _without_null(schema)  # items have unions too
    if "enum" in schema:
        values = {str(value): value for value in schema["enum"]}

        def choose(text: str) -> Any:
            return values.get(text, text)

        return choose
    kind = _kind(schema)
    if kind == "string":
        return str
    if kind == "integer":
        return _named("integer", int)
    if kind == "number":
        return _named("number", float)
    return _named("JSON", json.loads)


def _named(name: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """Give a conversion the name that argparse puts into "invalid ... value"."""

    def call(text: str) -> Any:
        return convert(text)

    call.__name__ = name
    return call
