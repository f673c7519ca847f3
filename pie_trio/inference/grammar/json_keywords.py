"""The keywords of JSON Schema, by what is to be done with them.

Those in none of these sets say nothing about which values are valid.
"""

from __future__ import annotations

__all__ = [
    "COUNTS",
    "DRAFTS",
    "ENFORCED",
    "NEWEST",
    "NOT_SUPPORTED",
    "NUMBERS",
    "REWRITTEN",
    "SCHEMA",
    "SCHEMAS",
    "SCHEMA_BY_NAME",
]

DRAFTS = {
    "http://json-schema.org/draft-04/schema": 4,
    "http://json-schema.org/draft-06/schema": 6,
    "http://json-schema.org/draft-07/schema": 7,
    "https://json-schema.org/draft/2019-09/schema": 2019,
    "https://json-schema.org/draft/2020-12/schema": 2020,
}
NEWEST = 2020

SCHEMA = frozenset({"additionalProperties", "additionalItems", "items"})
SCHEMAS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
SCHEMA_BY_NAME = frozenset({"properties", "patternProperties"})
NUMBERS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
COUNTS = frozenset(
    {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
)
ENFORCED = (
    SCHEMA
    | SCHEMAS
    | SCHEMA_BY_NAME
    | NUMBERS
    | COUNTS
    | {"$ref", "const", "enum", "format", "pattern", "required", "type"}
)
REWRITTEN = COUNTS | {"format", "pattern", "patternProperties"}
NOT_SUPPORTED = frozenset(
    {
        *("$dynamicRef", "$recursiveRef", "contains", "dependencies"),
        *("dependentRequired", "dependentSchemas", "disallow", "divisibleBy", "else"),
        *("extends", "if", "maxContains", "minContains", "not", "propertyNames"),
        *("then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    }
)
