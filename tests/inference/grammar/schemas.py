"""Random JSON schemas, values to try them on, and a validator that decides."""

from __future__ import annotations

import re
import warnings
from typing import Any

from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError, validators

SPACES = "\t\n\v\f\r \xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
NAMES = ("a", "b", "ab")

scalars = st.sampled_from([None, True, False, 0, 1, 2.5, -3, "", "a", "ab", "b1"])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, "c"]), inner, max_size=3)
    ),
    max_leaves=5,
)
counts = st.integers(0, 3)
types = st.sampled_from(
    ["null", "boolean", "integer", "number", "string", "array", "object"]
)


def _with_parts(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    schemas = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "type": types | st.lists(types, min_size=1, max_size=3, unique=True),
            "properties": st.dictionaries(st.sampled_from(NAMES), inner, max_size=2),
            "patternProperties": st.dictionaries(
                st.sampled_from(["^a", "b$", "^c$"]), inner, max_size=2
            ),
            "additionalProperties": inner,
            "required": st.lists(st.sampled_from(NAMES), max_size=2, unique=True),
            "minProperties": counts,
            "maxProperties": counts,
            "prefixItems": schemas,
            "items": inner,
            "minItems": counts,
            "maxItems": counts,
            "minLength": counts,
            "maxLength": counts,
            "pattern": st.sampled_from(["^a", "b$", "[0-9]", "^[^b]*$"]),
            "minimum": st.sampled_from([0, 1, 2.5]),
            "const": values,
            "enum": st.lists(values, min_size=1, max_size=3),
            "allOf": schemas,
            "anyOf": schemas,
            "oneOf": schemas,
            "$ref": st.sampled_from(["#/$defs/x", "#/$defs/y"]),
        },
    ).flatmap(_few_of)


def _few_of(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return what remains of a schema if most keywords are left out."""
    keys = sorted(schema)
    if not keys:
        return st.just(schema)
    chosen = st.lists(st.sampled_from(keys), max_size=4, unique=True)
    return chosen.map(lambda names: {name: schema[name] for name in names})


parts = st.recursive(
    st.booleans() | _with_parts(st.booleans()), _with_parts, max_leaves=4
)
schemas = st.builds(
    lambda root, x, y: {**root, "$defs": {"x": x, "y": y}},
    _with_parts(parts),
    parts,
    parts,
)


def _search(validator: Any, pattern: str, value: object, _: object) -> Any:
    """Decide as JavaScript does, for patterns that mean something else in Python."""
    expression = pattern.replace(r"\s", f"[{SPACES}]").replace(r"\S", f"[^{SPACES}]")
    if isinstance(value, str) and not re.search(expression, value, re.ASCII):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def validator_for(schema: dict[str, Any]) -> Any:
    """Return a validator of the draft that a schema names, with formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        base = validators.validator_for(schema, default=Draft202012Validator)
    kind = validators.extend(base, {"pattern": _search})
    return kind(schema, format_checker=base.FORMAT_CHECKER)
