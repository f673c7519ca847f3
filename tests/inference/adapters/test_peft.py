"""Adapters that PEFT itself has saved, against what PEFT computes with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pie_trio.engine_api import Batch
from pie_trio.inference.engine import open_engine
from tests.inference.contexts import Context
from tests.model_factory import write_model_directory

if TYPE_CHECKING:
    from pathlib import Path

transformers: Any = pytest.importorskip("transformers")
peft: Any = pytest.importorskip(
    "peft", reason="peft is not installed: merged weights stand in for it"
)

TOKENS = [256, *b"Once upon a time"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": "all-linear", "r": 4, "lora_alpha": 6}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "down_proj"],
            "layers_to_transform": [1],
            "use_rslora": True,
            "rank_pattern": {"down_proj": 2},
            "alpha_pattern": {r"layers\.\d+\.self_attn\.q_proj": 3},
        },
    ),
    "qwen2": ("qwen2", {"target_modules": r".*\.(q|k|v|up)_proj"}),
    "gemma3": ("gemma3", {"target_modules": ["q_proj", "o_proj", "gate_proj"]}),
    "phi3": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj"]}),
}


# PEFT asks transformers by a name that it is about to lose.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is:FutureWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_peft(tmp_path: Path, case: str) -> None:
    variant, fields = CASES[case]
    directory = write_model_directory(tmp_path / "m", variant)
    torch.manual_seed(3)
    base = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
    )
    config = peft.LoraConfig(task_type="CAUSAL_LM", **fields)
    model = peft.get_peft_model(base, config).eval()
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zeros, as long as nobody has trained them
                parameter.normal_(std=0.3)
        expected = model(torch.tensor([TOKENS])).logits[0].numpy()
    model.save_pretrained(tmp_path / "a")
    engine = open_engine(directory, name="m", num_pages=4, num_threads=1).engine
    engine.load_adapter("a", tmp_path / "a")
    for adapter, is_same in (("a", True), ("", False)):
        request = Context([0, 1]).feed(TOKENS, rows=range(17), adapter=adapter)
        found = engine.forward_logits(Batch((request,)))
        assert np.allclose(found, expected, atol=1e-4) == is_same
