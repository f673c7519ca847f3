"""``pie keys``: who may use a server. It works on the server's data directory."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pie_trio.application.server.keys import SCOPES, USER, make_key
from pie_trio.cli.options import at_least_one, shared_limits
from pie_trio.config import SharedLimits
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from pie_trio.application.server.keys import Key, Scope

__all__ = ["add_keys"]

USUAL_SCOPES = ("launch", "upload")


def add_keys(commands: Any) -> None:
    """Add ``pie keys``."""
    parser = commands.add_parser(
        "keys",
        help="make, list and revoke the keys of a server",
        description="Make, list and revoke the keys of a server. Run it where the server keeps its "
        "data; one that runs follows at its next request.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    add = _add(
        *(actions, "add", _add_key, "make a key, and print it once"),
        "Make a key for a user, and print it: it cannot be shown again. A user may have several. "
        "Example: pie keys add ann --scope launch --max-instances 8",
    )
    add.add_argument("user", metavar="NAME", help="whose it will be")
    add.add_argument(
        "--scope",
        action="append",
        choices=SCOPES,
        help="what it is for: launch programs, upload them, read metrics, or admin for "
        "everything of everybody; repeat for several (default: launch and upload)",
    )
    add.add_argument(
        "--max-instances",
        type=at_least_one,
        metavar="N",
        help="most that run at once with this key (default: as many as its user may have)",
    )
    add.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="KIND=N",
        help="what they may use together: "
        f"{', '.join(asdict(SharedLimits()))}; repeat for several",
    )
    _add(
        *(actions, "list", _list_keys, "list the keys"),
        "List the keys, without what is secret in them. Example: pie keys list --json",
    )
    revoke = _add(
        *(actions, "revoke", _revoke, "revoke keys"),
        "Revoke keys. What was launched with them runs on: see pie ps and pie kill. Example: pie "
        "keys revoke 1a2b3c4d",
    )
    revoke.add_argument(
        "ids", nargs="*", metavar="id", help="of a key: see pie keys list"
    )
    revoke.add_argument("--user", metavar="NAME", help="all keys of this user")


def _add(
    actions: Any,
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
    description: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="of the server (default: $PIE_DATA_DIR, else as its configuration says, else "
        "~/.local/share/pie)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="of the server (default: $PIE_CONFIG, else none)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=command)
    return parser


def _add_key(options: argparse.Namespace) -> int:
    from pie_trio.application.server.keys_tables import open_key_tables

    if not USER.fullmatch(options.user):
        raise ConfigError(
            f"{options.user!r} is no name for a user: use up to 64 letters, digits, '.', '_', "
            "'@' and '-', beginning with a letter or digit"
        )
    limits = shared_limits(options.limit, "--limit")
    if options.max_instances is not None:
        limits["instances"] = options.max_instances
    key, text = make_key(
        options.user,
        cast("list[Scope]", options.scope or USUAL_SCOPES),
        limits=limits,
        created_at=time.time(),
    )
    with open_key_tables(_directory(options)) as tables:
        tables.add(key)
    if options.json:
        return _print_json(_fields(key) | {"key": text})
    print(text)  # noqa: T201 - it is the result
    print(  # noqa: T201
        f"pie: key {key.key_id} of {key.user}, for {' and '.join(sorted(key.scopes))}; keep "
        "it: it cannot be shown again",
        file=sys.stderr,
    )
    return 0


def _list_keys(options: argparse.Namespace) -> int:
    keys = _read(options)
    if options.json:
        return _print_json([_fields(key) for key in keys])
    rows = [("ID", "USER", "SCOPES", "LIMITS", "CREATED")]
    for key in keys:
        limits = ",".join(f"{kind}={most}" for kind, most in key.limits.items())
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(key.created_at))
        scopes = ",".join(sorted(key.scopes))
        rows.append((key.key_id, key.user, scopes, limits or "-", made))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())  # noqa: T201 - it is the result
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from pie_trio.application.server.keys_tables import open_key_tables

    if bool(options.ids) == (options.user is not None):
        raise ConfigError(
            "say which keys: their ids as pie keys list shows them, or --user NAME"
        )
    found = {key.key_id: key for key in _read(options)}
    chosen: Sequence[str] = options.ids or [
        key.key_id for key in found.values() if key.user == options.user
    ]
    missing = [name for name in chosen if name not in found]
    if missing or not chosen:
        what = f"key {missing[0]!r}" if missing else f"key of {options.user!r}"
        raise ConfigError(
            f"there is no {what} in {_directory(options)}: see pie keys list"
        )
    with open_key_tables(_directory(options)) as tables:
        for name in chosen:
            tables.remove(name)
    if options.json:
        return _print_json([_fields(found[name]) for name in chosen])
    for name in chosen:
        print(f"{name}: revoked, of {found[name].user}")  # noqa: T201 - it is the result
    return 0


def _directory(options: argparse.Namespace) -> Path:
    from pie_trio.cli.configuration import find_data_directory

    return find_data_directory(options.data_dir, options.config, os.environ)


def _read(options: argparse.Namespace) -> list[Key]:
    """Return the keys; where there is no file of them, there are none."""
    from pie_trio.application.server.keys_tables import KEYS_FILE, open_key_tables

    directory = _directory(options)
    if not (directory / KEYS_FILE).exists():
        return []
    with open_key_tables(directory) as tables:
        return tables.all()


def _fields(key: Key) -> dict[str, Any]:
    return {
        "id": key.key_id,
        "user": key.user,
        "scopes": sorted(key.scopes),
        "limits": dict(key.limits),
        "created_at": key.created_at,
    }


def _print_json(value: object) -> int:
    print(json.dumps(value, ensure_ascii=False, indent=2))  # noqa: T201 - it is the result
    return 0
