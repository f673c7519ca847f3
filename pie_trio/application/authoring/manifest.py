"""What a program says of itself: ``[tool.pie]`` of its pyproject.toml, or a block in its file.

A program that names grants has these and no others, wherever it runs; what it may use at most is
the lower of its own limit and the server's.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from pie_trio.application.outgoing import parse_grant
from pie_trio.application.services import Grants
from pie_trio.errors import ConfigError, ManifestError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pie_trio.config import InstanceLimits

__all__ = ["Limits", "Manifest", "parse_block", "parse_pyproject"]

# As PEP 723 has it for `script`.
_BLOCK = re.compile(
    r"^# /// (?P<kind>pie|script)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", re.MULTILINE
)
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")
MIB = 1 << 20
PUBLISHED = ("chat", "completions", "embeddings", "tool")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program says it needs at most; None where it says nothing.

    Attributes:
        memory_mib: Of the guest.
        wall_seconds: From launch to end.
        pages: KV pages of each model.
        embeds: Of each model.
        queues: Open command queues.
        commands_in_flight: Commands enqueued and not yet taken.
        children: At once.
    """

    memory_mib: int | None = None
    wall_seconds: float | None = None
    pages: int | None = None
    embeds: int | None = None
    queues: int | None = None
    commands_in_flight: int | None = None
    children: int | None = None

    def below(self, ceiling: InstanceLimits) -> InstanceLimits:
        """Return the lower one of each limit: the program's own, or the ceiling."""
        changes: dict[str, Any] = {}
        if self.wall_seconds is not None:
            most = math.inf if ceiling.wall_seconds is None else ceiling.wall_seconds
            changes["wall_seconds"] = min(self.wall_seconds, most)
        for name, target, unit in (
            ("memory_mib", "memory_bytes", MIB),
            ("pages", "max_pages", 1),
            ("embeds", "max_embeds", 1),
            ("queues", "max_queues", 1),
            ("commands_in_flight", "max_in_flight", 1),
            ("children", "max_children", 1),
        ):
            own: int | None = getattr(self, name)
            if own is not None:
                changes[target] = min(own * unit, getattr(ceiling, target))
        return replace(ceiling, **changes)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a program says of itself.

    Attributes:
        name: What to call it; empty for the name of its file or folder.
        description: In a line.
        entry: The module to run; empty for the usual one.
        grants: What it may do; None where it does not say, and the one who runs it decides.
        limits: What it may use.
        dependencies: Distributions that it needs, as pip takes them.
        publish: The OpenAI routes on which its name is a model, by what they serve; and ``tool``
            if it is one over MCP.
    """

    name: str = ""
    description: str = ""
    entry: str = ""
    grants: Grants | None = None
    limits: Limits = field(default_factory=Limits)
    dependencies: Sequence[str] = ()
    publish: Sequence[str] = ()

    def granted(self, offered: Grants) -> Grants:
        """Return what the program may do where ``offered`` is what it may do at most.

        Hosts are not compared here: those that it names come to those that are offered only
        where the caller adds them.
        """
        if self.grants is None:
            return offered
        return Grants(
            logits=offered.logits and self.grants.logits,
            publish=offered.publish and self.grants.publish,
            topics=offered.topics and self.grants.topics,
            spawn=offered.spawn and self.grants.spawn,
            http=offered.http,
        )


def parse_pyproject(text: str, where: str = "pyproject.toml") -> Manifest | None:
    """Read a pyproject.toml; None if it has no ``[tool.pie]``.

    Args:
        text: The file.
        where: What errors call it.

    Raises:
        ManifestError: It is not TOML, a key is unknown or its value of the wrong type.
    """
    document = _parse_toml(text, where)
    tool = _table(document.get("tool", {}), f"{where}: [tool]")
    if "pie" not in tool:
        return None
    project = _table(document.get("project", {}), f"{where}: [project]")
    manifest = _parse_table(tool["pie"], f"{where}: [tool.pie]", "tool.pie.")
    needed = _list_of_str(
        project.get("dependencies", []), f"{where}: [project] dependencies"
    )
    return replace(
        manifest,
        name=manifest.name or _str(project.get("name", ""), f"{where}: [project] name"),
        description=manifest.description
        or _str(project.get("description", ""), f"{where}: [project] description"),
        dependencies=needed,
    )


def parse_block(text: str, where: str) -> Manifest | None:
    """Read the block ``# /// pie`` in a module, or ``# /// script`` of PEP 723; None without.

    Raises:
        ManifestError: There are two, it is not TOML, a key is unknown or has a wrong value.
    """
    found: dict[str, str] = {}
    for match in _BLOCK.finditer(text):
        if match["kind"] in found:
            raise ManifestError(
                f"{where} has two blocks `# /// {match['kind']}`: keep one"
            )
        lines = match["content"].splitlines()
        found[match["kind"]] = "\n".join(line[2:] for line in lines)
    manifest: Manifest | None = None
    if "script" in found:
        script = _parse_toml(found["script"], f"{where}, block `# /// script`")
        tool = _table(script.get("tool", {}), f"{where}: [tool]")
        manifest = _parse_table(
            tool.get("pie", {}), f"{where}: [tool.pie]", "tool.pie."
        )
        needed = script.get("dependencies", [])
        manifest = replace(
            manifest, dependencies=_list_of_str(needed, f"{where}: dependencies")
        )
    if "pie" in found:
        table = _parse_toml(found["pie"], f"{where}, block `# /// pie`")
        own = _parse_table(table, f"{where}, block `# /// pie`:", "")
        manifest = replace(own, dependencies=manifest.dependencies if manifest else ())
    return manifest


def _parse_toml(text: str, where: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"{where} is not TOML: {error}") from error
    except RecursionError as error:
        raise ManifestError(
            f"{where} has tables or lists in each other hundreds of times: make it flatter"
        ) from error


def _parse_table(table: object, where: str, prefix: str) -> Manifest:
    members = _checked_table(
        table,
        where,
        {
            "name": _name,
            "description": _str,
            "entry": _entry,
            "publish": _publish,
            "grants": _table,
            "limits": _table,
        },
    )
    if "grants" in members:
        grants = _checked_table(
            members["grants"],
            f"{where.removesuffix('[tool.pie]')}[{prefix}grants]",
            {
                "http": _hosts,
                "logits": _bool,
                "publish": _bool,
                "topics": _bool,
                "spawn": _bool,
            },
        )
        members["grants"] = Grants(**grants)
    limits = _checked_table(
        members.get("limits", {}),
        f"{where.removesuffix('[tool.pie]')}[{prefix}limits]",
        {
            "memory_mib": _count,
            "wall_seconds": _seconds,
            "pages": _count,
            "embeds": _count,
            "queues": _count,
            "commands_in_flight": _count,
            "children": _count,
        },
    )
    members["limits"] = Limits(**limits)
    return Manifest(**members)


def _checked_table(
    table: object, where: str, known: Mapping[str, Callable[[object, str], Any]]
) -> dict[str, Any]:
    """Return the values of a table, each checked; unknown keys are refused."""
    members = _table(table, where)
    for key in members:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ManifestError(
                f"{where} has no key {key!r}: {hint}It takes {', '.join(known)}"
            )
    return {key: known[key](value, f"{where} {key}") for key, value in members.items()}


def _wrong(where: str, expected: str, value: object) -> ManifestError:
    return ManifestError(f"{where}: expected {expected}, got {value!r}")


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, "a table", value)
    return cast("dict[str, Any]", value)


def _str(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(where, "a text", value)
    return value


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise _wrong(where, "letters, digits, '.', '_' and '-', at most 64", value)
    return value


def _entry(value: object, where: str) -> str:
    text = _str(value, where)
    if not text.endswith(".py") or text.startswith(("/", "..")):
        raise _wrong(where, "the path of a module in the project, as 'app.py'", value)
    return text


def _bool(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(where, "true or false", value)
    return value


def _count(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _wrong(where, "a number of 1 or more", value)
    return value


def _seconds(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(where, "a number of seconds", value)
    if not (math.isfinite(value) and value > 0):
        raise _wrong(where, "a positive number of seconds", value)
    return float(value)


def _list_of_str(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _wrong(where, "a list of texts", value)
    items = cast("list[object]", value)
    return tuple(_str(item, where) for item in items)


def _publish(value: object, where: str) -> tuple[str, ...]:
    found = _list_of_str(value, where)
    for item in found:
        if item not in PUBLISHED:
            raise _wrong(where, f"some of {', '.join(PUBLISHED)}", item)
    return found


def _hosts(value: object, where: str) -> tuple[str, ...]:
    hosts = _list_of_str(value, where)
    for host in hosts:
        try:
            parse_grant(host)
        except ConfigError as error:
            raise ManifestError(f"{where}: {error}") from error
    return hosts
