from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.model_directory import read_model_directory
from pie_trio.inference.models.loading import load_decoder
from pie_trio.inference.weights import open_checkpoint
from tests.model_factory import write_model_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.models.decoder import Decoder


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    config = read_model_directory(directory).config
    with open_checkpoint(directory) as checkpoint:
        return load_decoder(config, checkpoint, dtype)


def test_norms_that_are_stored_around_0_keep_their_precision(tmp_path: Path) -> None:
    write_model_directory(tmp_path, "gemma3", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    decoder = load(tmp_path, torch.bfloat16)
    assert decoder.dtype == torch.bfloat16
    name = "model.layers.1.post_attention_layernorm.weight"
    expected = 1.0 + stored[name].float()
    norm = decoder.layers[1].attention_post_norm
    assert norm is not None
    torch.testing.assert_close(norm, expected, rtol=0, atol=0)
    assert not torch.equal(norm, norm.bfloat16().float())  # it would not fit


def test_scales_of_embeddings_are_numbers_of_the_models_dtype(tmp_path: Path) -> None:
    write_model_directory(tmp_path, "gemma2")
    exact, rounded = (
        load(tmp_path, dtype).embedding_scale
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert exact == pytest.approx(24**0.5)
    assert rounded == 4.90625


def test_linear_layers_of_the_same_inputs_are_one(tmp_path: Path) -> None:
    write_model_directory(tmp_path, "qwen2")
    stored = load_file(tmp_path / "model.safetensors")
    qkv = load(tmp_path).layers[1].qkv
    for part, found in (("weight", qkv.weight), ("bias", qkv.bias)):
        names = (f"model.layers.1.self_attn.{x}_proj.{part}" for x in "qkv")
        assert found is not None
        assert torch.equal(found, torch.cat([stored[name] for name in names]))


@pytest.mark.parametrize(
    ("variant", "name", "shape"),
    [
        ("llama-biased", "model.layers.0.self_attn.o_proj.bias", "[24]"),
        ("qwen2", "model.layers.1.self_attn.k_proj.bias", "[16]"),
        ("qwen3", "model.layers.1.self_attn.q_norm.weight", "[8]"),
        ("qwen3-moe", "model.layers.1.mlp.experts.5.up_proj.weight", "[16, 24]"),
        ("mixtral", "model.layers.0.block_sparse_moe.gate.weight", "[5, 24]"),
        ("phi3", "model.layers.0.self_attn.qkv_proj.weight", "[80, 48]"),
        ("gemma2", "model.layers.1.post_feedforward_layernorm.weight", "[24]"),
    ],
)
def test_a_missing_tensor_of_a_family_is_refused(
    tmp_path: Path, variant: str, name: str, shape: str
) -> None:
    write_model_directory(tmp_path, variant)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelDirectoryError) as caught:
        load(tmp_path)
    assert f"the tensor {name} {shape} is missing" in str(caught.value)
