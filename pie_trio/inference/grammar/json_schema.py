"""Which JSON schemas are let through to llguidance, and in which form.

llguidance enforces most keywords, refuses some, and passes over others in silence, as the
standard wants for keywords that it does not know. What would make an output that does not
validate is refused here, by name and place. Only what the root reaches is looked at.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar, cast

from pie_trio.errors import GrammarError
from pie_trio.inference.grammar.json_formats import FORMATS, narrower
from pie_trio.inference.grammar.json_keywords import (
    COUNTS,
    DRAFTS,
    ENFORCED,
    NEWEST,
    NOT_SUPPORTED,
    NUMBERS,
    REWRITTEN,
    SCHEMA,
    SCHEMA_BY_NAME,
    SCHEMAS,
)
from pie_trio.inference.grammar.json_patterns import portable_pattern
from pie_trio.inference.grammar.json_strings import MAX_CONSTRAINTS, Strings

__all__ = ["check_json_schema", "check_schema_value"]

T = TypeVar("T", list[Any], dict[str, Any], str)

MAX_DEPTH = 60
"""Schemas inside of one another; serde_json, which llguidance uses, stops at 128 brackets."""

MAX_PATTERN_PAIRS = 3000
"""Pairs of patternProperties in one object: llguidance looks whether both can match."""

MAX_NUMBER = 2**53
"""llguidance computes with 64-bit floats, and cuts integers off where theirs end."""

# A model that is allowed to go on with blanks for ever sometimes does.
_WHITESPACE = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}
_NO_WHITESPACE = {"whitespace_flexible": False}


def check_json_schema(text: str) -> str:
    """Return a schema as llguidance is to have it, in JSON.

    Raises:
        GrammarError: It is no JSON, no schema, or uses what cannot be enforced.
    """
    try:
        value: object = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"json-schema: expected JSON, but {error}") from error
    return check_schema_value(value)


def check_schema_value(value: object) -> str:
    """As :func:`check_json_schema`, of JSON that was parsed already and may be changed."""
    if isinstance(value, bool):
        value = {} if value else {"type": []}
    if not isinstance(value, dict):
        raise refusal("", f"expected an object or a boolean, got {_short(value)}")
    root = cast("dict[str, Any]", value)
    options: object = root.get("x-guidance", {})
    if options not in ({}, {"whitespace_flexible": False}):
        raise refusal(
            "/x-guidance",
            f'only {{"whitespace_flexible": false}} is supported, got {_short(options)}',
        )
    _Checker(root).check()
    root["x-guidance"] = _NO_WHITESPACE if options else _WHITESPACE
    return json.dumps(root, allow_nan=False)


class _Checker:
    """Goes through one document, from the root along its keywords and references."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._draft = NEWEST
        self._schemas: set[int] = set()  # the ids of the objects that were checked
        self._constants: set[int] = set()  # and of those in const and enum
        self._references: list[tuple[str, str]] = []  # from where, to where
        self._embedded: str | None = None  # where an $id below the root is
        self._rewrites: list[tuple[dict[str, Any], str]] = []
        self._num_pattern_pairs = 0

    def check(self) -> None:
        self._draft = self._find_draft()
        self._schema(self._root, "", 0)
        has_references = bool(self._references)
        while self._references:
            where, reference = self._references.pop()
            self._schema(self._resolve(where, reference), reference[1:], 0)
        if has_references and self._embedded is not None:
            raise refusal(
                self._embedded,
                "an $id below the root is not supported in a document with $ref: "
                "references are looked up in the whole document",
            )
        if self._schemas & self._constants:
            raise refusal("", "a $ref to a value of const or enum is not supported")
        if Strings(self._resolve).most(self._root) > MAX_CONSTRAINTS:
            raise refusal(
                "",
                f"allOf, $ref and the like put more than {MAX_CONSTRAINTS} patterns, "
                "formats and lengths on one string",
            )
        for schema, keyword in self._rewrites:
            _rewrite(schema, keyword)

    def _find_draft(self) -> int:
        name = self._root.get("$schema")
        if name is None:
            return NEWEST
        draft = DRAFTS.get(name.removesuffix("#")) if isinstance(name, str) else None
        if draft is None:
            raise refusal(
                "/$schema", f"expected one of {', '.join(DRAFTS)}, got {_short(name)}"
            )
        return draft

    def _schema(self, schema: object, where: str, depth: int) -> None:
        """Check a schema and what is below it."""
        if isinstance(schema, bool):
            return
        if not isinstance(schema, dict):
            raise refusal(
                where, f"expected an object or a boolean, got {_short(schema)}"
            )
        if depth > MAX_DEPTH:
            raise refusal(
                where, f"more than {MAX_DEPTH} schemas are inside of one another"
            )
        keywords = cast("dict[str, Any]", schema)
        if id(keywords) in self._schemas:
            return
        self._schemas.add(id(keywords))
        self._combination(keywords, where)
        for keyword, value in keywords.items():
            at = f"{where}/{keyword}"
            if keyword in NOT_SUPPORTED:
                raise refusal(at, f"the keyword {keyword} is not supported")
            if keyword == "items" and isinstance(value, list):
                self._schema_list(cast("list[object]", value), at, depth)
            elif keyword in SCHEMA:
                self._schema(value, at, depth + 1)
            elif keyword in SCHEMAS:
                self._schema_list(_expect(at, value, list), at, depth)
            elif keyword in SCHEMA_BY_NAME:
                if keyword == "patternProperties":
                    self._patterns(_expect(at, value, dict), at)
                for name, inner in _expect(at, value, dict).items():
                    self._schema(inner, f"{at}/{name}", depth + 1)
            else:
                self._constraint(keyword, value, at)
            if keyword in REWRITTEN:
                self._rewrites.append((keywords, keyword))

    def _schema_list(self, schemas: list[object], at: str, depth: int) -> None:
        for index, inner in enumerate(schemas):
            self._schema(inner, f"{at}/{index}", depth + 1)

    def _patterns(self, schemas: dict[str, Any], at: str) -> None:
        for pattern in schemas:
            portable_pattern(pattern, f"json-schema: {at}")
        self._num_pattern_pairs += len(schemas) ** 2
        if self._num_pattern_pairs > MAX_PATTERN_PAIRS:
            raise refusal(at, "there are too many patterns to compare with one another")

    def _constraint(self, keyword: str, value: object, at: str) -> None:
        """Check a keyword that holds no schemas."""
        if keyword == "$ref":
            self._references.append((at, _expect(at, value, str)))
        elif keyword == "const":
            self._constant(value, at)
        elif keyword == "enum":
            if not _expect(at, value, list):
                raise refusal(at, "expected at least one value")
            self._constant(value, at)
        elif keyword in NUMBERS:
            self._number(keyword, value, at)
        elif keyword in COUNTS:
            _check_count(value, at)
        elif keyword == "pattern":
            portable_pattern(_expect(at, value, str), f"json-schema: {at}")
        elif keyword == "format" and value not in FORMATS:
            raise refusal(
                at, f"expected a format of {', '.join(FORMATS)}, got {_short(value)}"
            )

    def _number(self, keyword: str, value: object, at: str) -> None:
        if isinstance(value, bool):
            if self._draft == 4 and keyword.startswith("exclusive"):
                return
        elif isinstance(value, int | float):
            _check_exact(value, at)
            if value > 0 or keyword != "multipleOf":
                return
        raise refusal(
            at, f"expected a number that {keyword} can be, got {_short(value)}"
        )

    def _constant(self, value: object, at: str) -> None:
        """Check what a value of const or enum is made of."""
        waiting = [value]
        while waiting:
            item = waiting.pop()
            if isinstance(item, list):
                waiting += cast("list[object]", item)
            elif isinstance(item, dict):
                self._constants.add(id(cast("object", item)))
                waiting += cast("dict[str, object]", item).values()
            elif isinstance(item, int | float) and not isinstance(item, bool):
                _check_exact(item, at)

    def _combination(self, schema: dict[str, Any], where: str) -> None:
        """Refuse keywords that llguidance understands otherwise beside others or in a draft."""
        draft, names = self._draft, schema.keys() & ENFORCED
        is_root = schema is self._root
        if not is_root and "$schema" in schema:
            raise refusal(f"{where}/$schema", "$schema is supported at the root only")
        if not is_root:
            self._note_identifier(schema, where)
        if draft <= 7 and "$ref" in names and len(names) > 1:
            raise refusal(
                where,
                "beside $ref, other keywords count only since 2019-09: put them into an "
                "allOf, or name a newer $schema",
            )
        since = {"const": 6, "prefixItems": 2020}
        for name in sorted(names & since.keys()):
            if draft < since[name]:
                raise refusal(f"{where}/{name}", f"{name} is newer than the $schema")
        is_old_array = (
            isinstance(schema.get("items"), list) or "additionalItems" in names
        )
        if draft == NEWEST and is_old_array:
            raise refusal(
                where,
                "in 2020-12, items is one schema and additionalItems is no keyword: use "
                "prefixItems and items, or name an older $schema",
            )
        self._minimum_of_properties(schema, where)

    def _note_identifier(self, schema: dict[str, Any], where: str) -> None:
        name = "id" if self._draft == 4 else "$id"
        if isinstance(schema.get(name), str):
            self._embedded = f"{where}/{name}"

    def _minimum_of_properties(self, schema: dict[str, Any], where: str) -> None:
        """Refuse a minimum that a name which comes twice would seem to reach.

        A grammar does not remember which names have come. One beyond the required ones is
        new in any case.
        """
        minimum: object = schema.get("minProperties", 0)
        required = cast("list[object]", schema.get("required", []))
        most = len(set(map(str, required))) + 1
        if isinstance(minimum, int) and minimum > most:
            raise refusal(
                f"{where}/minProperties",
                f"at most {most} is supported here, one more than there are required names",
            )

    def _resolve(self, where: str, reference: str) -> object:
        """Return what a reference points to."""
        if reference == "#":
            return self._root
        is_plain = reference.startswith("#/") and not set(reference) & {"~", "%"}
        if not is_plain or reference == "#/":  # that is the root in llguidance
            raise refusal(
                where,
                "expected a reference of plain names inside of the document, as "
                f"#/$defs/name, got {_short(reference)}",
            )
        target: object = self._root
        for name in reference[2:].split("/"):
            if isinstance(target, dict):
                members = cast("dict[str, object]", target)
                target = members.get(name)
            elif isinstance(target, list) and name.isascii() and name.isdigit():
                items = cast("list[object]", target)
                target = items[int(name)] if int(name) < len(items) else None
            else:
                target = None
            if target is None:
                raise refusal(where, f"{reference} is not there")
            if isinstance(target, dict):
                keywords = cast("dict[str, object]", target)
                self._note_identifier(keywords, reference[1:])
        return target  # pyright: ignore[reportUnknownVariableType] -- JSON


def refusal(where: str, reason: str) -> GrammarError:
    """Return the error for one place, a JSON pointer."""
    return GrammarError(f"json-schema: {where or 'the root'}: {reason}")


def _rewrite(schema: dict[str, Any], keyword: str) -> None:
    """Put a checked keyword into the form that llguidance is to have."""
    value = schema[keyword]
    if keyword == "pattern":
        schema[keyword] = portable_pattern(value, "json-schema")
    elif keyword == "patternProperties":
        schemas = cast("dict[str, Any]", value)
        schema[keyword] = {
            portable_pattern(pattern, "json-schema"): inner
            for pattern, inner in schemas.items()
        }
    elif keyword in COUNTS:
        schema[keyword] = int(value)
    elif (extra := narrower(value)) is not None:
        schema["allOf"] = [*schema.get("allOf", []), extra]


def _check_count(value: object, at: str) -> None:
    is_whole = isinstance(value, int) or (
        isinstance(value, float) and value.is_integer()
    )
    if isinstance(value, bool) or not is_whole or cast("float", value) < 0:
        raise refusal(at, f"expected a count, got {_short(value)}")


def _check_exact(value: float, at: str) -> None:
    """Refuse a number that another one would stand for."""
    if not abs(value) <= MAX_NUMBER:
        raise refusal(
            at, f"expected a number from -2**53 to 2**53, got {_short(value)}"
        )


def _expect(at: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        names = {list: "a list", dict: "an object", str: "a string"}
        raise refusal(at, f"expected {names[kind]}, got {_short(value)}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"found {name}, which is not JSON")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."
