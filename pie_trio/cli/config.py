"""``pie config``: what ``pie serve`` would be configured with, and why."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pie_trio.cli.serve import add_serve_options, configure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from pie_trio.cli.configuration import Configuration, Value

__all__ = ["add_config"]

MODELS = "models."


def add_config(commands: Any) -> None:
    """Add ``pie config``."""
    parser = commands.add_parser(
        "config",
        help="show the configuration of a server",
        description="Show the configuration of a server.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    show = actions.add_parser(
        "show",
        help="print what pie serve would use, and where it comes from",
        description="Print what pie serve would use with these options in this environment, and "
        "where each value comes from: as a file that pie serve takes. Example: pie config show "
        "--config pie.toml",
        allow_abbrev=False,
    )
    add_serve_options(show)
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(command=_show)


def _show(options: argparse.Namespace) -> int:
    from pie_trio.cli.configuration import Value
    from pie_trio.cli.settings import SECTIONS, SETTINGS

    found = configure(options, os.environ)
    optional = {setting.name for setting in SETTINGS if setting.is_optional}
    tables: dict[str, Any] = {"model": _models(found)}
    for name, value in found.values.items():
        section, _, key = name.rpartition(".")
        if not name.startswith(MODELS):
            tables.setdefault(section, {})[key] = value
    if options.json:
        file = str(found.file.path) if found.file else None
        _print(json.dumps({"file": file, **tables}, indent=2, default=_as_json))
        return 0
    sources = ["flags", "PIE_*", "defaults"]
    if found.file is not None:
        sources.insert(2, str(found.file.path))
    _print(f"# {' over '.join(sources)}")
    for section, table in tables.items():
        for one in table if section == "model" else [table]:
            head = "[[model]]" if section == "model" else f"[{section}]"
            _print(f"\n{head}  # {SECTIONS[section]}")
            for key, value in one.items():
                is_unlimited = value.value is None and f"{section}.{key}" in optional
                _print(
                    _line(key, Value("none", value.origin) if is_unlimited else value)
                )
    return 0


def _models(found: Configuration) -> list[Mapping[str, Value]]:
    """Return what each model is loaded with; of what is said for all, all have it."""
    from pie_trio.cli.configuration import Value

    models = found.models()
    if found.model_values:
        return [
            {
                **values,
                "name": Value(model.name, values["name"].origin),
                "directory": Value(model.directory, values["directory"].origin),
            }
            for values, model in zip(found.model_values, models, strict=True)
        ]
    said = {
        name.removeprefix(MODELS): value
        for name, value in found.values.items()
        if name.startswith(MODELS)
    }
    origin, adapters = said.pop("model").origin, said.pop("adapter").origin
    return [
        {
            "name": Value(model.name, origin),
            "directory": Value(model.directory, origin),
            "adapters": Value(dict(model.adapters), adapters),
            **said,
        }
        for model in models
    ]


def _line(key: str, value: Value) -> str:
    """Return a line of TOML, with the origin in a comment; a comment where there is no value."""
    if value.value is None:
        return f"# {key} is not set"
    text = f"{key} = {_toml(value.value)}"
    return f"{text:<40}  # {value.origin}"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        table = cast("dict[str, Any]", value)
        pairs = [f"{_text(key)} = {_toml(one)}" for key, one in table.items()]
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return f"[{', '.join(map(_toml, items))}]"
    if isinstance(value, Path | str):
        return _text(str(value))
    return json.dumps(value)


def _text(text: str) -> str:
    """Return a text of TOML, whose escapes are those of JSON but for this one."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return {"value": value.value, "from": value.origin}


def _print(text: str) -> None:
    print(text)  # noqa: T201 - it is the result
