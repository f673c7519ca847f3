"""Writes small model directories with random weights, so that tests need no download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from tests.model_families import VARIANTS, tensor_shapes

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = ["ByteTokens", "LlamaShape", "write_llama_directory", "write_model_directory"]


class ByteTokens:
    """Ids of the tokenizer that is written: one a byte, as in ``FakeTokenizer``."""

    BOS = 256
    EOS = 257
    VOCAB_SIZE = 258


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """Sizes of a random model. The defaults differ from each other, to find swapped axes."""

    vocab_size: int = ByteTokens.VOCAB_SIZE
    hidden_size: int = 24
    intermediate_size: int = 40
    num_layers: int = 2
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 8
    rope_theta: float = 10_000.0
    is_tied: bool = True


def write_llama_directory(
    path: Path,
    shape: LlamaShape | None = None,
    *,
    seed: int = 7,
    num_shards: int = 1,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a complete model directory in the Hugging Face layout.

    Args:
        path: Made if it does not exist.
        shape: Sizes of the model.
        seed: Of the weights.
        num_shards: More than one writes that many files and an index.
        dtype: Of the stored weights.
        config: Fields to set in ``config.json``; the value None removes the field.

    Returns:
        ``path``.
    """
    return write_model_directory(
        path,
        "llama",
        shape,
        seed=seed,
        num_shards=num_shards,
        dtype=dtype,
        config=config,
    )


def write_model_directory(
    path: Path,
    variant: str,
    shape: LlamaShape | None = None,
    *,
    seed: int = 7,
    num_shards: int = 1,
    dtype: torch.dtype = torch.float32,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a model of any family: one of ``VARIANTS``. See :func:`write_llama_directory`."""
    path.mkdir(parents=True, exist_ok=True)
    fields = {**_config(shape or LlamaShape(), dtype), **VARIANTS[variant]}
    tensors = random_tensors(tensor_shapes(fields), fields, seed=seed)
    kept = {n: v for n, v in {**fields, **(config or {})}.items() if v is not None}
    (path / "config.json").write_text(json.dumps(kept))
    _byte_tokenizer().save(str(path / "tokenizer.json"))
    _save(path, {n: t.to(dtype) for n, t in tensors.items()}, num_shards)
    return path


def random_tensors(
    shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], *, seed: int
) -> dict[str, Tensor]:
    """Return random float32 weights.

    They are scaled so that logits spread over several units, and layers outweigh the embedding:
    greedy decoding has clear margins then, and does not just repeat the last token.
    """
    generator = torch.Generator().manual_seed(seed)
    is_gemma = config["model_type"].startswith("gemma")
    offset = 1.0 if is_gemma else 0.0  # what the model adds itself
    tensors: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if name == "model.norm.weight":
            tensors[name] = 3.0 * (1.0 + 0.2 * noise) - offset
        elif "norm" in name:
            tensors[name] = 1.0 + 0.2 * noise - offset
        elif name.endswith(".bias"):
            tensors[name] = 0.5 * noise
        elif name == "model.embed_tokens.weight":
            scale = config["hidden_size"] ** -0.5 if is_gemma else 1.0
            tensors[name] = 0.3 * scale * noise
        else:
            tensors[name] = _gain(name) * shape[1] ** -0.5 * noise
    return tensors


def _gain(name: str) -> float:
    gains = {"q_proj": 2.0, "qkv_proj": 1.5, "o_proj": 3.0, "lm_head": 1.5}
    gains |= {"down_proj": 3.0, "w2": 3.0, "gate": 2.0}
    return gains.get(name.split(".")[-2], 1.0)


def _config(shape: LlamaShape, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": 256,
        "tie_word_embeddings": shape.is_tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": ByteTokens.BOS,
        "eos_token_id": ByteTokens.EOS,
    }


def _byte_tokenizer() -> Tokenizer:
    alphabet = _gpt2_alphabet()
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", ByteTokens.BOS)],
    )
    return tokenizer


def _gpt2_alphabet() -> dict[str, int]:
    """Return the id of each character with which GPT-2 spells a byte: the byte itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def _save(path: Path, tensors: dict[str, Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(tensors, path / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        names = sorted(tensors)[shard::num_shards]
        save_file({name: tensors[name] for name in names}, path / file_name)
        weight_map.update(dict.fromkeys(names, file_name))
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
