"""``adapter_config.json`` as PEFT reads it: which layers have an adapter, and its scale."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pie_trio.errors import AdapterError, ModelDirectoryError
from pie_trio.inference.adapters.directory import CONFIG_FILE
from pie_trio.inference.json_files import json_list, read_json_object

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["AdapterConfig", "read_adapter_config"]

T = TypeVar("T", int, float)

# Fields that change what the adapter computes, with the values that are implemented.
_REQUIRED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    # Others, as pissa, have changed the weights of the base model too.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}

# Fields that are read below, or that say nothing about what the adapter computes.
_KNOWN = {
    *_REQUIRED,
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("auto_mapping", "base_model_name_or_path", "revision", "peft_version"),
    *("inference_mode", "lora_dropout", "megatron_core", "runtime_config"),
    *("eva_config", "qalora_group_size", "ensure_weight_tying"),
}

_ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What an adapter says of itself. Modules are named as in the base model's checkpoint.

    Attributes:
        rank: Of the modules that no pattern is about.
        alpha: As ``rank``.
        ranks: By regular expression for the end of a module's name.
        alphas: As ``ranks``.
        is_rank_stabilized: The scale is ``alpha / sqrt(rank)``, not ``alpha / rank``.
        targets: A regular expression for whole names, or ends of names.
        excludes: As ``targets``.
        layers: Indices of the only layers to change; None for all.
        layers_pattern: Regular expressions for what stands before these indices.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    is_rank_stabilized: bool
    targets: str | tuple[str, ...]
    excludes: str | tuple[str, ...]
    layers: frozenset[int] | None
    layers_pattern: tuple[str, ...]

    def has_target(self, module: str) -> bool:
        """Say whether PEFT would put an adapter on this linear layer."""
        if _matches(self.excludes, module):
            return False
        if isinstance(self.targets, str):
            is_all = self.targets.lower() == _ALL_LINEAR
            return is_all or _matches(self.targets, module)
        if not _matches(self.targets, module):
            return False
        return self.layers is None or self._layer_of(module) in self.layers

    def rank_of(self, module: str) -> int:
        """Return the rank of a module."""
        return _find(self.ranks, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Return what its product is multiplied by."""
        rank = self.rank_of(module)
        divisor = math.sqrt(rank) if self.is_rank_stabilized else rank
        return _find(self.alphas, module, self.alpha) / divisor

    def _layer_of(self, module: str) -> int | None:
        found = None
        for pattern in self.layers_pattern or (r"[^.]*",):
            # The first number counts: others are those of experts.
            if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", module):
                break
        return None if found is None else int(found["index"])


def read_adapter_config(directory: Path) -> AdapterConfig:
    """Read the config of an adapter.

    Raises:
        AdapterError: It cannot be read, or asks for what is not implemented.
    """
    path = directory / CONFIG_FILE
    try:
        raw = read_json_object(path)
    except ModelDirectoryError as error:
        raise AdapterError(str(error)) from error
    reader = _Reader(raw, path)
    reader.refuse_unsupported()
    layers = reader.layers()
    targets = reader.names("target_modules")
    if layers is not None and isinstance(targets, str):
        raise reader.error(
            "layers_to_transform", "null beside a text in target_modules"
        )
    return AdapterConfig(
        rank=_positive_integer(reader, "r", raw.get("r", 8)),
        alpha=_number(reader, "lora_alpha", raw.get("lora_alpha", 8)),
        ranks=reader.patterns("rank_pattern", _positive_integer),
        alphas=reader.patterns("alpha_pattern", _number),
        is_rank_stabilized=reader.boolean("use_rslora"),
        targets=targets,
        excludes=reader.names("exclude_modules"),
        layers=layers,
        layers_pattern=reader.layers_pattern(),
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    raw: Mapping[str, Any]
    path: Path

    def error(self, name: str, expected: str) -> AdapterError:
        return AdapterError(
            f"{self.path}: {name} should be {expected}, but it is "
            f"{self.raw.get(name)!r}: correct the file, or load another adapter"
        )

    def refuse_unsupported(self) -> None:
        for name, values in _REQUIRED.items():
            value = self.raw.get(name, values[0])
            # By type too, for 1 is True in Python.
            if not any(type(value) is type(v) and value == v for v in values):
                raise self._unsupported(name, " or ".join(map(repr, values)))
        for name, value in self.raw.items():
            if name not in _KNOWN and value not in (None, False, [], {}, ""):
                raise self._unsupported(name, "null or false")

    def _unsupported(self, name: str, supported: str) -> AdapterError:
        return AdapterError(
            f"{self.path}: {name} = {self.raw.get(name)!r} is not supported (only "
            f"{supported} is), and ignoring it would change the results: load another adapter, "
            "or merge this one into its model"
        )

    def boolean(self, name: str) -> bool:
        value = self.raw.get(name)
        if not isinstance(value, bool | None):
            raise self.error(name, "true or false")
        return bool(value)

    def names(self, name: str) -> str | tuple[str, ...]:
        """Return a regular expression, or names."""
        value: object = self.raw.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            if value.lower() != _ALL_LINEAR:
                self._check_expression(name, value)
            return value
        names = json_list(value)
        if names is None or not all(isinstance(one, str) for one in names):
            raise self.error(name, "a list of names, or a regular expression")
        return tuple(names)

    def patterns(
        self, name: str, read: Callable[[_Reader, str, object], Any]
    ) -> dict[str, Any]:
        value: object = self.raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.error(name, "an object from names to numbers")
        found = cast("dict[str, object]", value)
        for pattern in found:
            self._check_expression(name, pattern)
        return {pattern: read(self, name, one) for pattern, one in found.items()}

    def layers(self) -> frozenset[int] | None:
        value: object = self.raw.get("layers_to_transform")
        if value is None or value == []:
            return None
        indices = [value] if isinstance(value, int) else json_list(value)
        if indices is None or not all(type(index) is int for index in indices):
            raise self.error("layers_to_transform", "the index of a layer, or a list")
        return frozenset(cast("list[int]", indices))

    def layers_pattern(self) -> tuple[str, ...]:
        value: object = self.raw.get("layers_pattern")
        patterns = [value] if isinstance(value, str) and value else json_list(value)
        if patterns is None and value not in (None, ""):
            raise self.error("layers_pattern", "a name, or a list of names")
        for pattern in patterns or ():
            if not isinstance(pattern, str):
                raise self.error("layers_pattern", "a name, or a list of names")
            self._check_expression("layers_pattern", pattern)
        return tuple(patterns or ())

    def _check_expression(self, name: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise self.error(
                name, f"made of regular expressions ({error} in {pattern!r})"
            ) from error


def _positive_integer(reader: _Reader, name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise reader.error(name, "an integer >= 1")
    return value


def _number(reader: _Reader, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise reader.error(name, "a number")
    if not math.isfinite(value):
        raise reader.error(name, "a finite number")
    return float(value)


def _matches(names: str | tuple[str, ...], module: str) -> bool:
    if isinstance(names, str):
        return bool(names) and re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _find(by_pattern: Mapping[str, T], module: str, default: T) -> T:
    for pattern, value in by_pattern.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
