"""Files of configuration: TOML whose keys are all known, with the place of each for errors."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

__all__ = ["ConfigFile", "nearest", "read_config_file"]

_HEADER = re.compile(r"\s*\[(\[)?([^\[\]]+)\]")
_KEY = re.compile(r"""\s*(?:([A-Za-z0-9_-]+)|"([^"]*)"|'([^']*)')\s*[=.]""")
KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "a whole number"),
    (float, "a number"),
    (str, "a text"),
    (list, "a list"),
    (dict, "a table"),
)

Path_ = tuple[str | int, ...]
"""Where a value stands: names of tables, numbers of tables in a list from 0, and its key."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file of configuration that was read.

    Attributes:
        path: Of it.
        data: What it says.
    """

    path: Path
    data: Mapping[str, Any]
    _lines: Mapping[Path_, int] = field(repr=False)

    def place(self, *where: str | int) -> str:
        """Return ``FILE:LINE`` of a key or a table; ``FILE`` where the line is not known."""
        line = self._lines.get(where)
        return f"{self.path}:{line}" if line is not None else str(self.path)

    def get(self, *where: str | int) -> Any:
        """Return a value; None if it is not there.

        Raises:
            ConfigError: What should be a table on the way to it is none.
        """
        found: object = self.data
        for depth, step in enumerate(where):
            if isinstance(step, int):
                found = cast("list[object]", found)[step]  # it was counted
                continue
            if not isinstance(found, dict):
                raise self.wrong(where[:depth], "a table", found)
            found = cast("dict[str, object]", found).get(step)  # TOML has no null
            if found is None:
                return None
        return found

    def check_key(
        self, name: str, known: Collection[str], *where: str | int, hint: str = ""
    ) -> None:
        """Raise unless a key is known.

        Args:
            name: Of the key.
            known: Keys that may be in this table.
            where: The table.
            hint: Said in place of the key that is nearest.

        Raises:
            ConfigError: It names the key and its line, and the key that is nearest.
        """
        if name not in known:
            hint = hint or nearest(name, known) or f"; there are {', '.join(known)}"
            place = self.place(*where, name)
            raise ConfigError(f"{place}: {_table(where)} has no {name!r}{hint}")

    def typed(self, kind: type, *where: str | int) -> Any:
        """Return a value of a type; None if it is not there. A float may be written as an int.

        Raises:
            ConfigError: It has another type.
        """
        value = self.get(*where)
        if (
            value is None
            or (type(value) is kind)
            or (kind is float and type(value) is int)
        ):
            return value
        raise self.wrong(where, dict(KINDS)[kind], value)

    def table(self, *where: str | int) -> Mapping[str, Any]:
        """Return a table; an empty one if it is not there. Raises what :meth:`typed` does."""
        return self.data if not where else self.typed(dict, *where) or {}

    def tables(self, name: str) -> int:
        """Return how many tables are there under ``[[name]]``.

        Raises:
            ConfigError: There is something else of that name.
        """
        found: object = self.get(name)
        tables = cast("list[object]", found if isinstance(found, list) else [])
        if found is not None and not (
            tables and all(isinstance(one, dict) for one in tables)
        ):
            expected = f"one or more tables, each as [[{name}]]"
            raise self.wrong((name,), expected, self.get(name))
        return len(tables)

    def texts(self, *where: str | int) -> list[str] | None:
        """Return a list of texts; None if it is not there. Raises what :meth:`typed` does."""
        values: list[Any] | None = self.typed(list, *where)
        for value in values or ():
            if not isinstance(value, str):
                raise self.wrong(where, "a list of texts", value)
        return values

    def wrong(self, where: Path_, expected: str, value: object) -> ConfigError:
        """Return the error for a value that is not what was expected."""
        kind = next((name for kind, name in KINDS if type(value) is kind), "a time")
        what = f"{_table(where[:-1])} {where[-1]}" if where[1:] else where[0]
        return ConfigError(
            f"{self.place(*where)}: {what} must be {expected}, got {kind}: {value!r}"
        )


def read_config_file(path: Path) -> ConfigFile:
    """Read a file.

    Raises:
        ConfigError: It cannot be read, or is no TOML.
    """
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration {path}: {error.strerror}: see --config and "
            "PIE_CONFIG"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    return ConfigFile(path, data, _find_lines(text))


def nearest(name: str, known: Collection[str]) -> str:
    """Return ``: do you mean 'that'?`` for a name that is not known, if one is like it."""
    found = get_close_matches(name.replace("-", "_"), list(known), n=1)
    return f": do you mean {found[0]!r}?" if found else ""


def _find_lines(text: str) -> dict[Path_, int]:
    """Return the lines of keys and headers, as far as they are written one to a line.

    The parser of the standard library tells no places. What this misses (tables in one line,
    texts of several lines) only lacks its number in a message.
    """
    found = dict[Path_, int]()
    counts = dict[str, int]()
    table: Path_ = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            name = header[2].strip()
            table = tuple(part.strip().strip("\"'") for part in name.split("."))
            if header[1]:
                counts[name] = counts.get(name, -1) + 1
            if table[0] in counts:
                table = (table[0], counts[str(table[0])], *table[1:])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            found.setdefault((*table, key[1] or key[2] or key[3] or ""), number)
    return found


def _table(where: Path_) -> str:
    """Return a table as its header would be written."""
    names = [step for step in where if isinstance(step, str)]
    if not names:
        return "the file"
    is_list = len(where) == 2 and isinstance(where[1], int)
    return f"[[{names[0]}]]" if is_list else f"[{'.'.join(names)}]"
