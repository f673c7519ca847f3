"""One configuration of four sources: flags over ``PIE_*`` over a file over defaults.

What a setting is called, where it stands in the file, and which flag says the same is in
:mod:`pie_trio.cli.settings`. Here the sources are read and put over each other.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pie_trio.cli.options import choose_models, shared_limits
from pie_trio.cli.settings import (
    LIMIT_OPTIONS,
    MODEL_NAME,
    MODEL_OPTIONS,
    SETTINGS,
    Setting,
    known_keys,
)
from pie_trio.config import default_store_path
from pie_trio.config_file import ConfigFile, read_config_file
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pie_trio.config import ModelConfig

__all__ = ["Configuration", "Value", "find_data_directory", "resolve"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Value:
    """A value, and where it comes from.

    Attributes:
        value: None where nothing was said and there is no default.
        origin: ``--flag``, ``PIE_NAME``, ``FILE:LINE`` or ``default``.
    """

    value: Any
    origin: str


class Configuration:
    """What a command was asked for, whatever the source. Made by :func:`resolve`.

    Attributes:
        file: That was read, if one was.
        values: By the name of the setting, as ``server.port``.
        model_values: The same of the tables of models, by their keys; empty where a flag or
            the environment names the models.
        options: The same as a command line would say it.
    """

    def __init__(
        self,
        file: ConfigFile | None,
        values: dict[str, Value],
        model_values: Sequence[Mapping[str, Value]],
        options: argparse.Namespace,
    ) -> None:
        self.file, self.values, self.options = file, values, options
        self.model_values = model_values

    def __getitem__(self, name: str) -> Any:
        return self.values[name].value

    def fill(self, name: str, value: object) -> None:
        """Set what nothing was said of."""
        if self.values[name].value is None:
            self.values[name] = Value(value, "default")
            dest = next(setting.dest for setting in SETTINGS if setting.name == name)
            vars(self.options)[dest] = value

    def derive(self, name: str, value: object) -> None:
        """Set a default that follows from what was said of something else."""
        if self.values[name].origin == "default":
            self.values[name] = Value(value, "default")

    def over(self, section: str, base: T) -> T:
        """Return a dataclass with what its section says in place of its own."""
        known = {field.name for field in fields(base)}  # type: ignore[arg-type]
        said = {
            name.rpartition(".")[2]: value.value
            for name, value in self.values.items()
            if name.rpartition(".")[0] == section
        }
        changes = {name: value for name, value in said.items() if name in known}
        return replace(base, **changes)  # type: ignore[type-var]

    def models(self) -> list[ModelConfig]:
        """Return the models, the first as the default.

        Raises:
            ConfigError: A directory is none, or two models have one name.
        """
        if not self.model_values:
            return choose_models(self.options)
        found = [self._model(number) for number in range(len(self.model_values))]
        names = [model.name for model in found]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"two models are called {name}: give one of the [[model]] tables another "
                    "name"
                )
        if self.options.adapters:
            from pie_trio.application.run.setup import parse_adapters

            adapters = parse_adapters(self.options.adapters, found)
            found = [replace(model, adapters=adapters[model.name]) for model in found]
        return found

    def _model(self, number: int) -> ModelConfig:
        """Return the model of a table: as if it were alone on a command line."""
        values = {
            name: value.value for name, value in self.model_values[number].items()
        }
        directory, name = values.pop("directory"), values.pop("name")
        options = copy.copy(self.options)
        options.adapters = [
            f"{key}={path}" for key, path in values.pop("adapters").items()
        ]
        options.model = None
        if directory is not None:
            options.model = [f"{name or Path(directory).resolve().name}={directory}"]
        vars(options).update(values)
        (model,) = choose_models(options)
        return replace(model, name=name) if name else model


def resolve(
    options: argparse.Namespace,
    actions: Mapping[str, argparse.Action],
    environment: Mapping[str, str],
) -> Configuration:
    """Put the sources over each other: flags, environment, file, defaults.

    Args:
        options: With the flags that were given, and no defaults.
        actions: The flags that there are, by where they store their values.
        environment: Of the process.

    Raises:
        ConfigError: The file cannot be used, or a value is none.
    """
    path = getattr(options, "config", None) or environment.get("PIE_CONFIG")
    file = read_config_file(Path(path).expanduser()) if path else None
    if file is not None:
        _check_keys(file)
    values = dict[str, Value]()
    found = argparse.Namespace()
    for setting in SETTINGS:
        action = actions.get(setting.dest)
        value = _value_of(setting, action, options, environment, file)
        values[setting.name] = value
        if action is not None:
            vars(found)[setting.dest] = value.value
    for dest, action in actions.items():
        if dest in LIMIT_OPTIONS:
            _set_limits(values, LIMIT_OPTIONS[dest], action, options, environment)
        elif not hasattr(found, dest):
            said = _said(action, options, environment)
            value = said or Value(action.default, "default")
            vars(found)[dest] = value.value
            values[f"models.{_flag(action)[2:].replace('-', '_')}"] = value
    models: list[Mapping[str, Value]] = []
    if file is not None and _said(actions["model"], options, environment) is None:
        models = [
            _model_values(file, number, actions, options, environment)
            for number in range(file.tables("model"))
        ]
    return Configuration(file, values, models, found)


def find_data_directory(
    flag: Path | None, config: str | None, environment: Mapping[str, str]
) -> Path:
    """Return the data directory that a server with this configuration has.

    Args:
        flag: What ``--data-dir`` says.
        config: What ``--config`` says.
        environment: Of the process.

    Raises:
        ConfigError: The file cannot be used.
    """
    path = config or environment.get("PIE_CONFIG")
    if flag is None and path and not environment.get("PIE_DATA_DIR"):
        file = read_config_file(Path(path).expanduser())
        _check_keys(file)
        where = ("server", "data_dir")
        found = _in_file(Setting(where, Path), None, file, *where)
        flag = None if found is None else found.value
    return flag or default_store_path().parent


def _check_keys(file: ConfigFile) -> None:
    """Raise for the first key of a file that is not known."""
    tables = known_keys()
    for where, known in tables.items():
        for name in file.table(*where):
            others = [other for other, keys in tables.items() if name in keys]
            elsewhere = ".".join(others[0]) if others and name not in known else ""
            hint = f": it belongs into [{elsewhere}]" if elsewhere else ""
            file.check_key(name, known, *where, hint=hint)
    for number in range(file.tables("model")):
        for name in file.table("model", number):
            file.check_key(name, [*MODEL_NAME, *MODEL_OPTIONS], "model", number)


def _value_of(
    setting: Setting,
    action: argparse.Action | None,
    options: argparse.Namespace,
    environment: Mapping[str, str],
    file: ConfigFile | None,
) -> Value:
    """Return what the first source says that says something."""
    said = None if action is None else _said(action, options, environment)
    if said is None and file is not None:
        said = _in_file(setting, action, file, *setting.where)
    default = setting.default if action is None else action.default
    return said or Value(default, "default")


def _said(
    action: argparse.Action, options: argparse.Namespace, environment: Mapping[str, str]
) -> Value | None:
    """Return what the command line or the environment says; None if neither does."""
    flag = _flag(action)
    given = getattr(options, action.dest, None)
    if given is not None and given != []:
        return Value(given, flag)
    name = "PIE_" + flag[2:].replace("-", "_").upper()
    text = environment.get(name)
    if not text:
        return None
    if isinstance(action.default, list) or action.dest == "model":
        parts = [text] if action.dest == "model" else text.split(",")
        return Value([part.strip() for part in parts if part.strip()], name)
    return Value(_converted(action, text, name), name)


def _in_file(
    setting: Setting,
    action: argparse.Action | None,
    file: ConfigFile,
    *where: str | int,
) -> Value | None:
    """Return what a file says of a setting; None if it says nothing."""
    place = file.place(*where)
    if setting.kind is list:
        texts = file.texts(*where)
        return None if texts is None else Value(texts, place)
    if setting.is_optional and file.get(*where) == "none":
        return Value(None, place)
    value = file.typed(str if setting.kind is Path else setting.kind, *where)
    if value is None:
        return None
    if setting.kind is bool:
        return Value(value, place)
    if setting.kind is Path:
        # Of the file, not of wherever the server is started.
        value = file.path.parent.absolute() / Path(value).expanduser()
    elif action is not None:
        value = _converted(action, str(value), f"{place}: {where[-1]}")
    elif setting.kind in (int, float) and value < setting.least:
        raise ConfigError(
            f"{place}: {where[-1]} must be {setting.least} or more, got {value}"
        )
    return Value(value, place)


def _converted(action: argparse.Action, text: str, what: str) -> Any:
    """Return a text as the flag would read it."""
    value: Any = text
    try:
        if callable(action.type):  # a name in argparse's registry is for nobody else
            value = cast("Callable[[str], Any]", action.type)(text)
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise ConfigError(f"{what}: {error}") from None
    if action.choices is not None and value not in action.choices:
        raise ConfigError(
            f"{what}: expected {', '.join(map(str, action.choices))}, got {text!r}"
        )
    return value


def _set_limits(
    values: dict[str, Value],
    section: str,
    action: argparse.Action,
    options: argparse.Namespace,
    environment: Mapping[str, str],
) -> None:
    said = _said(action, options, environment)
    if said is not None:
        for kind, most in shared_limits(said.value, said.origin).items():
            values[f"{section}.{kind}"] = Value(most, said.origin)


def _model_values(
    file: ConfigFile,
    number: int,
    actions: Mapping[str, argparse.Action],
    options: argparse.Namespace,
    environment: Mapping[str, str],
) -> dict[str, Value]:
    """Return what holds of the model of a table."""
    found = dict[str, Value]()
    for name, kind in MODEL_NAME.items():
        if kind is dict:
            paths = dict[str, Path]()
            for key in file.table("model", number, name):
                setting = Setting((), Path)
                value = _in_file(setting, None, file, "model", number, name, key)
                assert value is not None, "the key is there"
                paths[key] = value.value
            place = file.place("model", number, name)
            found[name] = Value(paths, place if paths else "default")
        else:
            value = _in_file(Setting((), kind), None, file, "model", number, name)
            found[name] = value or Value(None, "default")
    for name, kind in MODEL_OPTIONS.items():
        action = actions[name]
        said = _said(action, options, environment)
        said = said or _in_file(Setting((), kind), action, file, "model", number, name)
        found[name] = said or Value(action.default, "default")
    return found


def _flag(action: argparse.Action) -> str:
    return action.option_strings[-1]
