"""Typed access to the fields of one JSON object, with errors that an operator understands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.json_files import json_list

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Fields"]


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of one JSON object; null is as good as absent where there is a default.

    Attributes:
        raw: The object.
        source: Where it came from, for messages.
    """

    raw: Mapping[str, Any]
    source: Path

    def error(self, name: str, expected: str, found: object) -> ModelDirectoryError:
        """Return the error that a field has a value that it cannot have."""
        return ModelDirectoryError(
            f"{self.source}: {name} should be {expected}, but it is {found!r}: "
            "correct the file, or serve another model"
        )

    def unsupported(
        self, name: str, found: object, supported: str
    ) -> ModelDirectoryError:
        """Return the error that a field asks for what is not implemented."""
        return ModelDirectoryError(
            f"{self.source}: {name} = {found!r} is not supported (only {supported} is), "
            "and ignoring it would change the results: serve another model"
        )

    def with_defaults(self, defaults: Mapping[str, object]) -> Fields:
        """Return the same fields with values for the absent ones; null is not absent here."""
        return Fields({**defaults, **self.raw}, self.source)

    def inner(self, name: str, value: object) -> Fields:
        """Return the fields of an object inside of this one.

        Raises:
            ModelDirectoryError: ``value`` is no object.
        """
        if not isinstance(value, dict):
            raise self.error(name, "null or an object", value)
        return Fields(cast("dict[str, Any]", value), Path(f"{self.source}: {name}"))

    def integer(self, name: str, *, default: int | None = None, least: int = 1) -> int:
        """Return an integer.

        Raises:
            ModelDirectoryError: It is no integer, too small, or missing without a default.
        """
        expected = f"an integer >= {least}"
        value = self._value(name, expected, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(name, expected, value)
        return value

    def optional_integer(self, name: str) -> int | None:
        """Return an integer from 1 on, or None where there is none."""
        return None if self.raw.get(name) is None else self.integer(name)

    def number(self, name: str, *, default: float | None = None) -> float:
        """Return a finite number above 0.

        Raises:
            ModelDirectoryError: It is something else, or missing without a default.
        """
        expected = "a number > 0"
        return self._number(name, self._value(name, expected, default), expected)

    def optional_number(self, name: str) -> float | None:
        """Return a finite number above 0, or None where there is none."""
        return None if self.raw.get(name) is None else self.number(name)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """Return a list of so many finite numbers above 0.

        Raises:
            ModelDirectoryError: It is something else, or missing.
        """
        expected = f"a list of {count} numbers > 0"
        values = json_list(self._value(name, expected, None))
        if values is None or len(values) != count:
            raise self.error(name, expected, self.raw[name])
        return tuple(self._number(name, value, expected) for value in values)

    def boolean(self, name: str, *, default: bool) -> bool:
        """Return true or false.

        Raises:
            ModelDirectoryError: It is something else.
        """
        value = self._value(name, "true or false", default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def require_neutral(self, name: str, allowed: tuple[object, ...]) -> None:
        """Check that a field is absent or has one of some values.

        Raises:
            ModelDirectoryError: It has another one.
        """
        value = self.raw.get(name, allowed[0])
        # 1 is 1.0 in JSON, but not true.
        is_bool = isinstance(value, bool)
        if not any(value == a and is_bool == isinstance(a, bool) for a in allowed):
            raise self.unsupported(name, value, " or ".join(repr(a) for a in allowed))

    def require_known(self, known: frozenset[str]) -> None:
        """Check that no field but these has a value.

        Raises:
            ModelDirectoryError: There is another one.
        """
        for name, value in self.raw.items():
            if value is not None and name not in known:
                raise self.unsupported(name, value, "null")

    def _number(self, name: str, value: object, expected: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, expected, value)
        if not 0 < value < float("inf"):
            raise self.error(name, expected, value)
        return float(value)

    def _value(self, name: str, expected: str, default: object) -> Any:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelDirectoryError(
                f"{self.source}: {name} is missing, expected {expected}: "
                "download the complete config.json of the model"
            )
        return value
