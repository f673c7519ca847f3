"""The parameters of a request, taken one by one: what is left over is refused by its name."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

from pie_trio.application.openai.failures import OpenAIError, refuse_unsupported

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Fields", "wrong_type", "wrong_value"]

SHOWN = 60


class Fields:
    """An object of a request.

    A parameter that is null is as good as one that is not there.

    Args:
        value: What came.
        where: What errors call it; empty for the body itself.
    """

    def __init__(self, value: object, where: str = "") -> None:
        if not isinstance(value, dict):
            raise wrong_type(where, "an object", value)
        self._values = cast("dict[str, Any]", value)
        self._where = where
        self._taken = set[str]()

    def name(self, key: str) -> str:
        """Return what errors call a member."""
        return f"{self._where}.{key}" if self._where else key

    def take(self, key: str) -> Any:
        """Return a value as it is; None if there is none."""
        self._taken.add(key)
        return self._values.get(key)

    def text(self, key: str, *, is_required: bool = False) -> str | None:
        """Return a text.

        Raises:
            OpenAIError: It is none, or missing.
        """
        value = self.take(key)
        if value is None and is_required:
            raise OpenAIError(
                f"you must provide {self.name(key)!r}",
                param=self.name(key),
                code="missing_required_parameter",
            )
        if value is not None and not isinstance(value, str):
            raise wrong_type(self.name(key), "a string", value)
        return value

    def choice(self, key: str, allowed: Sequence[str]) -> str | None:
        """Return one of some texts.

        Raises:
            OpenAIError: It is none of them.
        """
        value = self.text(key)
        if value is not None and value not in allowed:
            raise wrong_value(
                self.name(key), f"one of {', '.join(map(repr, allowed))}", value
            )
        return value

    def flag(self, key: str, *, default: bool = False) -> bool:
        """Return true or false.

        Raises:
            OpenAIError: It is neither.
        """
        value = self.take(key)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.name(key), "a boolean", value)
        return default if value is None else value

    def number(self, key: str, low: float, high: float) -> float | None:
        """Return a number in a range.

        Raises:
            OpenAIError: It is none, or outside.
        """
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(self.name(key), "a number", value)
        if not low <= value <= high:  # nor is NaN
            raise wrong_value(self.name(key), f"{low:g} to {high:g}", value)
        return float(value)

    def integer(self, key: str, low: int, high: float = math.inf) -> int | None:
        """Return an integer in a range.

        Raises:
            OpenAIError: It is none, or outside.
        """
        value = self.take(key)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # JSON knows no difference
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(self.name(key), "an integer", value)
        if not low <= value <= high:
            wanted = f"{low} to {high}" if high < math.inf else f"at least {low}"
            raise wrong_value(self.name(key), wanted, value)
        return value

    def sequence(self, key: str) -> list[Any] | None:
        """Return a list.

        Raises:
            OpenAIError: It is none.
        """
        value = self.take(key)
        if value is not None and not isinstance(value, list):
            raise wrong_type(self.name(key), "an array", value)
        return None if value is None else list[Any](value)  # pyright: ignore[reportUnknownArgumentType]

    def inner(self, key: str) -> Fields | None:
        """Return an object inside of this one.

        Raises:
            OpenAIError: It is none.
        """
        value = self.take(key)
        return None if value is None else Fields(value, self.name(key))

    def ignore(self, *keys: str) -> None:
        """Allow parameters that change nothing in an answer."""
        self._taken.update(keys)

    def only(self, key: str, *harmless: Any, why: str) -> None:
        """Refuse a parameter unless it has a value that asks for nothing.

        Raises:
            OpenAIError: It asks for something.
        """
        value = self.take(key)
        if value is not None and value not in harmless:
            raise refuse_unsupported(self.name(key), why)

    def finish(self) -> None:
        """Refuse what was not taken.

        Raises:
            OpenAIError: There is something.
        """
        for key in self._values:
            if key not in self._taken:
                raise OpenAIError(
                    f"unknown parameter: {self.name(key)!r}",
                    param=self.name(key),
                    code="unknown_parameter",
                )


def wrong_type(param: str, wanted: str, value: object) -> OpenAIError:
    """Return the error of a value that is of another type; without a parameter, of the body."""
    what = repr(param) if param else "the body"
    return OpenAIError(
        f"invalid type for {what}: expected {wanted}, got {_show(value)}",
        param=param or None,
        code="invalid_type",
    )


def wrong_value(param: str, wanted: str, value: object) -> OpenAIError:
    """Return the error of a value that is not among those allowed."""
    return OpenAIError(
        f"invalid value for {param!r}: expected {wanted}, got {_show(value)}",
        param=param,
        code="invalid_value",
    )


def _show(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= SHOWN else shown[: SHOWN - 3] + "..."
