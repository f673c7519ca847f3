"""What an adapter may not ask for, by name; and which layers a config means."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pie_trio.errors import AdapterError
from pie_trio.inference.adapters.config import read_adapter_config
from pie_trio.inference.engine import open_engine
from tests.adapter_factory import write_adapter
from tests.model_factory import write_model_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pie_trio.inference.engine import TorchEngine

STEM = "base_model.model.model.layers.0.self_attn.q_proj"
ONE = torch.ones(2, 2)

BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora = True is not supported"),
    "bias": ({"bias": "all"}, "bias = 'all' is not supported"),
    "lora-bias": ({"lora_bias": True}, "lora_bias"),
    "saved": ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
    "transposed": ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    "replicated": ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication"),
    "parameters": ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "activated": ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
    "init": ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    "init-number": ({"init_lora_weights": 1}, "init_lora_weights = 1"),
    "type": ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
    "task": ({"task_type": "SEQ_CLS"}, "task_type = 'SEQ_CLS'"),
    "of-the-future": ({"use_something_new": True}, "use_something_new"),
    "rank": ({"r": 0}, "r should be an integer >= 1, but it is 0"),
    "alpha": ({"lora_alpha": "8"}, "lora_alpha should be a number"),
    "targets": ({"target_modules": 3}, "target_modules should be a list"),
    "expression": ({"target_modules": "(q"}, "regular expressions"),
    "pattern": ({"rank_pattern": {"q_proj": 1.5}}, "rank_pattern should be an integer"),
    "layers": ({"layers_to_transform": "0"}, "layers_to_transform should be"),
    "other-rank": ({"r": 4}, r"lora_A.weight should have the shape \[4, 24\]"),
    "fewer": ({"target_modules": ["q_proj"]}, "leaves this layer out"),
    "other-layers": ({"layers_to_transform": [1]}, "leaves this layer out"),
    "more": ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, "have no tensors"),
    "none": ({"target_modules": None}, "leaves this layer out"),
}

BAD_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "half": ({f"{STEM}.lora_B.weight": None}, "q_proj.lora_B.weight is missing"),
    "dora": ({f"{STEM}.lora_magnitude_vector": ONE}, "lora_magnitude_vector"),
    "head": ({"base_model.model.lm_head.weight": ONE}, "lm_head.weight"),
    "embedding": (
        {"base_model.model.model.embed_tokens.lora_embedding_A": ONE},
        "lora_embedding_A is not supported",
    ),
    "adapted-head": (
        {f"base_model.model.lm_head.lora_{f}.weight": ONE for f in "AB"},
        "embedding and head cannot have adapters",
    ),
    "layer": (
        {f"{STEM.replace('0', '2')}.lora_{f}.weight": ONE for f in "AB"},
        "layers.2.self_attn.q_proj, but the model has no such linear layer",
    ),
    "nan": (
        {f"{STEM}.lora_A.weight": torch.full((3, 24), float("nan"))},
        "is not finite",
    ),
    "dtype": (
        {f"{STEM}.lora_A.weight": torch.ones(3, 24, dtype=torch.int8)},
        "torch.int8",
    ),
}


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[TorchEngine]:
    opened = open_engine(tiny_llama, name="m", num_pages=4, num_threads=1).engine
    yield opened
    opened.close()


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_config_that_cannot_be_followed_is_refused_by_name(
    engine: TorchEngine, tiny_llama: Path, tmp_path: Path, case: str
) -> None:
    config, message = BAD_CONFIGS[case]
    targets = ("q_proj", "v_proj")
    adapter = write_adapter(tmp_path / "a", tiny_llama, targets, config=config)
    with pytest.raises(AdapterError, match=message):
        engine.load_adapter(case, adapter)
    assert engine.info.adapters == ()


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_tensor_that_cannot_be_used_is_refused_by_name(
    engine: TorchEngine, tiny_llama: Path, tmp_path: Path, case: str
) -> None:
    tensors, message = BAD_TENSORS[case]
    adapter = write_adapter(tmp_path / "a", tiny_llama, tensors=tensors)
    with pytest.raises(AdapterError, match=message):
        engine.load_adapter(case, adapter)
    assert engine.info.adapters == ()


def test_damaged_files_are_refused(
    engine: TorchEngine, tiny_llama: Path, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "a", tiny_llama)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AdapterError, match="cannot be read"):
        engine.load_adapter("cut", adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(AdapterError, match="expected a JSON object"):
        engine.load_adapter("list", adapter)
    weights.unlink()
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors: No such file"):
        engine.load_adapter("half", adapter)


@pytest.mark.parametrize("targets", [("gate_proj",), ("gate",)])
def test_adapters_of_experts_and_routers_are_refused(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    model = write_model_directory(tmp_path / "m", "qwen3-moe")
    adapter = write_adapter(tmp_path / "a", model, targets, rank=2)
    opened = open_engine(model, name="m", num_pages=4, num_threads=1).engine
    with pytest.raises(AdapterError, match="experts and what chooses among them"):
        opened.load_adapter("a", adapter)


def test_an_adapter_of_another_model_is_refused(
    engine: TorchEngine, tmp_path: Path
) -> None:
    model = write_model_directory(tmp_path / "phi", "phi3")
    adapter = write_adapter(tmp_path / "a", model, ("qkv_proj",))
    with pytest.raises(AdapterError, match="no such linear layer"):
        engine.load_adapter("phi", adapter)


Q0, Q1 = (f"model.layers.{i}.self_attn.q_proj" for i in (0, 1))
UP1 = "model.layers.1.mlp.up_proj"

# What PEFT makes of these fields.
SELECTIONS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "names": ({"target_modules": ["q_proj"]}, {Q0, Q1}),
    "whole-name": ({"target_modules": [Q1]}, {Q1}),
    "no-part-of-a-name": ({"target_modules": ["proj"]}, set()),
    "expression": ({"target_modules": r".*\.1\..*"}, {Q1, UP1}),
    "expression-for-all-of-it": ({"target_modules": "q_proj"}, set()),
    "all": ({"target_modules": "all-linear"}, {Q0, Q1, UP1}),
    "excluded": (
        {"target_modules": "all-linear", "exclude_modules": ["up_proj"]},
        {Q0, Q1},
    ),
    "excluded-by-expression": (
        {"target_modules": ["q_proj", "up_proj"], "exclude_modules": r".*layers\.1.*"},
        {Q0},
    ),
    "layer": ({"target_modules": ["q_proj"], "layers_to_transform": 1}, {Q1}),
    "layers": (
        {
            "target_modules": ["q_proj", "up_proj"],
            "layers_to_transform": [1, 5],
            "layers_pattern": "layers",
        },
        {Q1, UP1},
    ),
    "other-pattern": (
        {
            "target_modules": ["q_proj"],
            "layers_to_transform": [1],
            "layers_pattern": ["blocks"],
        },
        set(),
    ),
}


def select(path: Path, fields: dict[str, Any]) -> set[str]:
    (path / "adapter_config.json").write_text(json.dumps(fields))
    config = read_adapter_config(path)
    return {module for module in (Q0, Q1, UP1) if config.has_target(module)}


@pytest.mark.parametrize("case", SELECTIONS)
def test_the_layers_of_a_config_are_chosen_as_documented(
    tmp_path: Path, case: str
) -> None:
    fields, expected = SELECTIONS[case]
    assert select(tmp_path, fields) == expected


@pytest.mark.parametrize("case", sorted({*SELECTIONS} - {"all", "excluded"}))
def test_the_layers_of_a_config_are_those_that_peft_chooses(case: str) -> None:
    peft: Any = pytest.importorskip("peft", reason="peft is not installed")
    utils = pytest.importorskip("peft.tuners.tuners_utils")
    fields, expected = SELECTIONS[case]
    config = peft.LoraConfig(**fields)
    found = {
        module
        for module in (Q0, Q1, UP1)
        if utils.check_target_module_exists(config, module)
    }
    assert found == expected
