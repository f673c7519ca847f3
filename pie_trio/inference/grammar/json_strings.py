"""How many constraints of a JSON schema may meet on one string."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_CONSTRAINTS", "Strings"]

MAX_CONSTRAINTS = 8
"""Each one can double the work of one step of the lexer; llguidance counts no such work."""


class Strings:
    """Goes through a document that was checked already."""

    def __init__(self, resolve: Callable[[str, str], object]) -> None:
        """Take what returns the schema that a reference, the second argument, names."""
        self._resolve = resolve
        # By the id of a schema: the answer, or 0 while it is being looked for.
        self._known: dict[int, int] = {}

    def most(self, *schemas: object) -> int:
        """Return how many there are on one string in one of the schemas, or a few more."""
        return max(map(self._in_one, schemas), default=0)

    def _in_one(self, schema: object) -> int:
        if not isinstance(schema, dict):
            return 0
        keywords = cast("dict[str, Any]", schema)
        if id(keywords) not in self._known:
            self._known[id(keywords)] = 0
            self._known[id(keywords)] = self._count(keywords)
        return self._known[id(keywords)]

    def _count(self, schema: dict[str, Any]) -> int:
        items: object = schema.get("items")
        below = [
            *(cast("list[object]", items) if isinstance(items, list) else [items]),
            *(schema.get(name) for name in ("additionalItems", "additionalProperties")),
            *schema.get("prefixItems", []),
        ]
        named = self.most(*schema.get("properties", {}).values())
        count = max(
            len(schema.keys() & {"format", "maxLength", "minLength", "pattern"}),
            self.most(*below),
            named + self.most(*schema.get("patternProperties", {}).values()),
        )
        # What applies to the same value as the schema itself meets its constraints.
        for name in ("anyOf", "oneOf"):
            count += self.most(*schema.get(name, []))
        count += sum(self.most(part) for part in schema.get("allOf", []))
        if "$ref" in schema:
            count += self.most(self._resolve("", schema["$ref"]))
        return count
