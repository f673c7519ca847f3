"""Reads an adapter that PEFT has saved, for one decoder; what it cannot do right, it refuses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError, safe_open

from pie_trio.errors import AdapterError
from pie_trio.inference.adapters.config import read_adapter_config
from pie_trio.inference.adapters.directory import WEIGHTS_FILE
from pie_trio.inference.adapters.lowrank import Adapter, LowRank, Part
from pie_trio.inference.adapters.targets import find_targets, why_no_target
from pie_trio.inference.kernels.linears import pack
from pie_trio.inference.models.ops import Linear
from pie_trio.inference.parallel.split import WHOLE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from pie_trio.inference.adapters.config import AdapterConfig
    from pie_trio.inference.adapters.targets import LinearName, Target
    from pie_trio.inference.kernels.protocol import LinearLayer
    from pie_trio.inference.models.decoder import Decoder

__all__ = ["load_adapter"]

_TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight"
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def load_adapter(directory: Path | str, model: Decoder) -> Adapter:
    """Read an adapter.

    Args:
        directory: With ``adapter_config.json`` and ``adapter_model.safetensors``.
        model: What it is for; its dtype is the adapter's.

    Raises:
        AdapterError: The files cannot be read, contradict each other, do not fit the model, or
            ask for what is not implemented.
    """
    directory = Path(directory).expanduser()
    config = read_adapter_config(directory)
    path = directory / WEIGHTS_FILE
    tensors = _read_tensors(path)
    targets = find_targets(model.config)
    modules = _modules(tensors, path)
    for module in modules:
        _check_module(module, targets, config, path)
    missing = [m for m in targets if config.has_target(m) and m not in modules]
    if missing:
        raise AdapterError(
            f"{path}: adapter_config.json names {missing[0]} and {len(missing) - 1} more "
            "layers that have no tensors here: save the adapter again"
        )
    reader = _Reader(config, tensors, model, path)
    by_linear: dict[tuple[int, LinearName], dict[str, Target]] = {}
    for module in sorted(modules, key=lambda m: targets[m].start):
        target = targets[module]
        by_linear.setdefault((target.layer, target.linear), {})[module] = target
    layers: list[dict[LinearName, LowRank]] = [{} for _ in model.layers]
    for (index, linear), found in by_linear.items():
        layers[index][linear] = reader.low_rank(found)
    return Adapter(tuple(layers))


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        # Copies: were the mapped file cut short later, reading it would kill the process.
        with cast("Any", safe_open(str(path), framework="pt", device="cpu")) as file:
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 -- no mapping
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{path}: expected a complete safetensors file, but it cannot be read ({error}): "
            "download the adapter again"
        ) from error


def _modules(names: Iterable[str], path: Path) -> list[str]:
    """Return the modules that there are both factors of."""
    factors: dict[str, set[str]] = {}
    for name in names:
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterError(
                f"{path}: the tensor {name} is not supported (only lora_A and lora_B of linear "
                "layers are), and ignoring it would change the results: load another adapter, "
                "or merge this one into its model"
            )
        factors.setdefault(match["module"], set()).add(match["factor"])
    for module, found in factors.items():
        if len(found) < 2:
            lacking = "B" if "A" in found else "A"
            raise AdapterError(
                f"{path}: the tensor {_tensor_name(module, lacking)} is missing: save the "
                "adapter again"
            )
    if not factors:
        raise AdapterError(f"{path}: there are no tensors: save the adapter again")
    return list(factors)


def _check_module(
    module: str, targets: Mapping[str, Target], config: AdapterConfig, path: Path
) -> None:
    if module not in targets:
        raise AdapterError(
            f"{path}: there is an adapter of {module}, but {why_no_target(module)}: load an "
            "adapter of other layers"
        )
    if not config.has_target(module):
        raise AdapterError(
            f"{path}: there is an adapter of {module}, but target_modules of "
            "adapter_config.json leaves this layer out: give the config that belongs to it"
        )


def _tensor_name(module: str, factor: str) -> str:
    return f"base_model.model.{module}.lora_{factor}.weight"


class _Reader:
    def __init__(
        self,
        config: AdapterConfig,
        tensors: Mapping[str, Tensor],
        model: Decoder,
        path: Path,
    ) -> None:
        self._config, self._tensors = config, tensors
        self._dtype, self._device = model.dtype, model.kernels.device
        self._split = WHOLE if model.group is None else model.group.split
        self._path = path

    def low_rank(self, targets: Mapping[str, Target]) -> LowRank:
        """Return what is added to one linear layer, by the modules that it holds."""
        downs: list[Tensor] = []
        parts: list[Part] = []
        first_rank = 0
        for module, target in targets.items():
            rank = self._config.rank_of(module)
            down, up = self._factors(module, target, rank)
            downs.append(down)
            up = up * self._config.scale_of(module)
            parts.append(Part(first_rank, rank, target.start, self._linear(up)))
            first_rank += rank
        return LowRank(self._linear(torch.cat(downs)), tuple(parts))

    def _factors(self, module: str, target: Target, rank: int) -> tuple[Tensor, Tensor]:
        """Return both factors, or what one of several ranks needs of them.

        Where these share the inputs, each adds its part of the product, as of the layer itself.
        """
        split, size = self._split, self._split.size
        if target.is_second:
            num_inputs = size * target.num_inputs
            down = self._take(module, "A", (rank, num_inputs))
            up = self._take(module, "B", (target.num_outputs, rank))
            return down[:, split.part(num_inputs)], up
        blocks = [size * length for length in target.blocks]
        down = self._take(module, "A", (rank, target.num_inputs))
        up = self._take(module, "B", (sum(blocks), rank))
        return down, torch.cat([up[rows] for rows in split.rows(blocks)])

    def _linear(self, weight: Tensor) -> LinearLayer:
        linear = Linear(weight.to(self._device, self._dtype))
        # Small ones stay as they are.
        return pack(linear) if self._device.type == "cpu" else linear

    def _take(self, module: str, factor: str, shape: tuple[int, int]) -> Tensor:
        """Return a factor as float32."""
        name = _tensor_name(module, factor)
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise AdapterError(
                f"{self._path}: the tensor {name} should have the shape {list(shape)} according "
                f"to the model and adapter_config.json, but it has {list(tensor.shape)}: load "
                "an adapter that was made for this model"
            )
        if tensor.dtype not in _DTYPES:
            raise AdapterError(
                f"{self._path}: the tensor {name} has the dtype {tensor.dtype}, but only "
                "float32, float16 and bfloat16 are supported: save the adapter again"
            )
        tensor = tensor.float()
        if not tensor.isfinite().all():
            raise AdapterError(
                f"{self._path}: the tensor {name} is not finite: save the adapter again"
            )
        return tensor
