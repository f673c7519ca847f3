"""Writes small LoRA adapters as PEFT saves them, and models with them merged in."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["adapted_modules", "write_adapter", "write_merged"]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
ALL = (*ATTENTION, *MLP)
PACKED = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def adapted_modules(model: Path, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return the shapes of the linear layers of a model with one of these last names."""
    tensors = load_file(model / "model.safetensors")
    found: dict[str, tuple[int, int]] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module.rpartition(".")[2] in targets:
            num_outputs, num_inputs = tensor.shape
            found[module] = (num_outputs, num_inputs)
    return found


def write_adapter(
    path: Path,
    model: Path,
    targets: Sequence[str] = ALL,
    *,
    seed: int = 1,
    rank: int = 3,
    alpha: float = 6.0,
    ranks: Mapping[str, int] | None = None,
    skip: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
) -> Path:
    """Write an adapter with random weights, which change the logits by several units.

    Args:
        path: Made if it does not exist.
        model: A directory with one file of weights.
        targets: Last names of the layers to change.
        seed: Of the weights.
        rank: Of the modules.
        alpha: Of the config.
        ranks: Of single modules.
        skip: Modules without tensors.
        dtype: Of the tensors.
        config: Fields to set in ``adapter_config.json``.
        tensors: To add; None takes one away.

    Returns:
        ``path``.
    """
    path.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for module, (num_outputs, num_inputs) in adapted_modules(model, targets).items():
        own = (ranks or {}).get(module, rank)
        down = torch.randn(own, num_inputs, generator=generator) * num_inputs**-0.5
        up = torch.randn(num_outputs, own, generator=generator) * 0.4
        if module not in skip:
            found[f"base_model.model.{module}.lora_A.weight"] = down.to(dtype)
            found[f"base_model.model.{module}.lora_B.weight"] = up.to(dtype)
    for name, tensor in (tensors or {}).items():
        if tensor is None:
            del found[name]
        else:
            found[name] = tensor.clone()  # safetensors takes each memory once
    save_file(found, path / "adapter_model.safetensors")
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.1,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "qalora_group_size": 16,
        "megatron_core": "megatron.core",
        "inference_mode": True,
    }
    (path / "adapter_config.json").write_text(json.dumps({**fields, **(config or {})}))
    return path


def write_merged(
    path: Path,
    model: Path,
    adapter: Path,
    *,
    scale: float = 2.0,
    scales: Mapping[str, float] | None = None,
) -> Path:
    """Write the model with ``scale * B @ A`` added to its weights.

    Args:
        path: Made if it does not exist.
        model: A directory with one file of weights.
        adapter: That :func:`write_adapter` wrote for it.
        scale: Of all modules.
        scales: Of single ones.

    Returns:
        ``path``.
    """
    shutil.copytree(model, path)
    weights = load_file(model / "model.safetensors")
    factors = load_file(adapter / "adapter_model.safetensors")
    for name in factors:
        if name.endswith(".lora_A.weight"):
            stem = name.removesuffix("lora_A.weight")
            module = stem.removeprefix("base_model.model.").removesuffix(".")
            product = factors[f"{stem}lora_B.weight"].float() @ factors[name].float()
            factor = (scales or {}).get(module, scale)
            weights[f"{module}.weight"] = weights[f"{module}.weight"] + factor * product
    save_file(weights, path / "model.safetensors")
    return path
