"""The families of models as they are published: fields of ``config.json``, names of tensors.

Written down apart from the package, which reads what stands here.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["VARIANTS", "tensor_shapes"]

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.0, 2.5, 7.0],
}

# For each name the fields that make it what it is. Windows are so small that contexts of a
# dozen tokens leave them.
VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        "llama-untied": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "tie_word_embeddings": False,
        },
        "llama-3.1": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rope_theta": 500.0,
            "rope_scaling": LLAMA3,
        },
        "llama-linear": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "rope_scaling": {"type": "linear", "factor": 4.0},
        },
        "llama-biased": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": True,
            "mlp_bias": True,
        },
        "mistral": {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": 5,
            "tie_word_embeddings": False,
        },
        "mixtral": {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        "qwen2": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"},
        "qwen2-windowed": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
            "rope_scaling": YARN,
        },
        "qwen3": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "rope_theta": 1_000_000,
        },
        "qwen3-moe": {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
            "moe_intermediate_size": 16,
            "norm_topk_prob": True,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "tie_word_embeddings": False,
        },
        "gemma2": {
            "architectures": ["Gemma2ForCausalLM"],
            "model_type": "gemma2",
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_activation": "gelu_pytorch_tanh",
            "sliding_window": 6,
            "query_pre_attn_scalar": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
        "gemma3": {
            "architectures": ["Gemma3ForCausalLM"],
            "model_type": "gemma3_text",
            "hidden_act": None,
            "hidden_activation": "gelu_pytorch_tanh",
            "num_hidden_layers": 4,
            "sliding_window": 6,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 5,
            "rope_theta": 1_000_000,
            "rope_local_base_freq": 100,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "phi3": {
            "architectures": ["Phi3ForCausalLM"],
            "model_type": "phi3",
            "hidden_size": 48,  # transformers wants head_dim to follow from it
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 512,
            "partial_rotary_factor": 0.75,
            "rope_scaling": LONGROPE,
            "sliding_window": 7,
            "pad_token_id": 0,
            "tie_word_embeddings": False,
        },
        "smollm3": {
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "num_hidden_layers": 3,
            "no_rope_layers": [1, 0, 1],
            "pad_token_id": 0,
        },
    }
)


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a checkpoint by their Hugging Face names."""
    hidden = config["hidden_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        parts = {**_norms(config), **_attention(config)}
        for mlp in _mlps(config, layer):
            parts |= mlp
        for name, shape in parts.items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    return shapes


def _norms(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    names = ["input_layernorm", "post_attention_layernorm"]
    if config["model_type"] in ("gemma2", "gemma3_text"):
        names += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    shapes: dict[str, tuple[int, ...]] = {
        f"{name}.weight": (config["hidden_size"],) for name in names
    }
    if config["model_type"] in ("qwen3", "qwen3_moe", "gemma3_text"):
        for name in ("q_norm", "k_norm"):
            shapes[f"self_attn.{name}.weight"] = (config["head_dim"],)
    return shapes


def _attention(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    rows = {"q_proj": query, "k_proj": key, "v_proj": key}
    if config["model_type"] == "phi3":
        rows = {"qkv_proj": query + 2 * key}
    has_bias = config.get("attention_bias", False)
    shapes = _linears(
        "self_attn",
        rows,
        config["hidden_size"],
        has_bias or config["model_type"] == "qwen2",
    )
    output = {"o_proj": config["hidden_size"]}
    return {**shapes, **_linears("self_attn", output, query, has_bias)}


def _mlps(
    config: Mapping[str, Any], layer: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    hidden, size = config["hidden_size"], config["intermediate_size"]
    match config["model_type"]:
        case "mixtral":
            block, names = "block_sparse_moe", ("w1", "w3", "w2")
            count = config["num_local_experts"]
        case "qwen3_moe" if layer not in config["mlp_only_layers"]:
            block, names = "mlp", ("gate_proj", "up_proj", "down_proj")
            count, size = config["num_experts"], config["moe_intermediate_size"]
        case "phi3":
            yield _linears("mlp", {"gate_up_proj": 2 * size}, hidden)
            yield _linears("mlp", {"down_proj": hidden}, size)
            return
        case _:
            has_bias = config.get("mlp_bias", False)
            rows = {"gate_proj": size, "up_proj": size}
            yield _linears("mlp", rows, hidden, has_bias)
            yield _linears("mlp", {"down_proj": hidden}, size, has_bias)
            return
    yield _linears(block, {"gate": count}, hidden)
    gate, up, down = names
    for expert in range(count):
        yield _linears(f"{block}.experts.{expert}", {gate: size, up: size}, hidden)
        yield _linears(f"{block}.experts.{expert}", {down: hidden}, size)


def _linears(
    block: str, rows: Mapping[str, int], columns: int, has_bias: bool = False
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, count in rows.items():
        shapes[f"{block}.{name}.weight"] = (count, columns)
        if has_bias:
            shapes[f"{block}.{name}.bias"] = (count,)
    return shapes
