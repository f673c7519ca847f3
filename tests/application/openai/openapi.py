"""OpenAI's own description of its interface, as JSON Schema."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import yaml
from jsonschema import Draft202012Validator

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Description", "read_description"]


class Description:
    """The schemas of OpenAI's interface."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.schemas: dict[str, Any] = _to_schema(document["components"]["schemas"])

    def check(self, name: str, value: object) -> None:
        """Raise unless a value is what a schema says."""
        schema = {
            "$ref": f"#/components/schemas/{name}",
            "components": {"schemas": self.schemas},
        }
        errors = list(Draft202012Validator(schema).iter_errors(value))
        assert not errors, (name, [_explain(error) for error in errors], value)

    def properties(self, name: str) -> list[str]:
        """Return the names of an object's members."""
        schema = self.schemas[name]
        parts = schema.get("allOf", [schema])
        found = set[str]()
        for part in parts:
            if "$ref" in part:
                found.update(self.properties(part["$ref"].rpartition("/")[2]))
            found.update(part.get("properties", ()))
        return sorted(found)


@cache
def read_description(path: Path) -> Description:
    """Read the document; it takes seconds."""
    with path.open(encoding="utf-8") as file:
        return Description(yaml.load(file, Loader=yaml.CSafeLoader))


def _to_schema(value: Any) -> Any:
    """Return what JSON Schema understands of what OpenAPI has written."""
    if isinstance(value, list):
        return [_to_schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _to_schema(item) for key, item in value.items()}
    if isinstance(found.get("discriminator"), dict) and "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")  # the discriminator tells which one it is
    if found.pop("nullable", None) is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found


def _explain(error: Any) -> str:
    deepest = error
    while deepest.context:
        deepest = max(deepest.context, key=lambda inner: len(inner.absolute_path))
    return f"{list(deepest.absolute_path)}: {deepest.message[:200]}"
