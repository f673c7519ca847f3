"""The families of models: for each, what it has and reads differently from a Llama.

Everything else is one decoder. What a family does not read must be neutral in its
``config.json``, so that a model whose mathematics we do not implement is refused by name instead
of served wrongly. Defaults are those of transformers, which leaves some fields out of files.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pie_trio.inference.models.layers import (
    alternating_layers,
    local_and_global_layers,
    mixtral_experts,
    no_experts,
    partly_rotary_layers,
    plain_layers,
    qwen_experts,
    sparse_layers,
    upper_windowed_layers,
    windowed_layers,
    windowed_sparse_layers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pie_trio.inference.models.config import (
        Activation,
        ExpertsConfig,
        LayerConfig,
    )
    from pie_trio.inference.models.fields import Fields

__all__ = ["FAMILIES", "NEUTRAL", "Family"]

# Fields that change the mathematics, with the values under which they change nothing.
# An absent field changes nothing either.
NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "alibi": (False, None),
        "attention_bias": (False, None),
        "attention_chunk_size": (None,),
        "attention_multiplier": (None,),
        "attn_logit_softcapping": (None,),
        "attn_temperature_tuning": (False, None),
        "clip_qkv": (None,),
        "embedding_multiplier": (None, 1.0),
        "final_logit_softcapping": (None,),
        "hidden_act": ("silu",),
        "hidden_activation": (None, "silu"),
        "layer_types": (None,),
        "lm_head_bias": (False, None),
        "logits_scaling": (None, 1.0),
        "mlp_bias": (False, None),
        "no_rope_layers": (None,),
        "num_experts": (None, 0, 1),
        "num_local_experts": (None, 0, 1),
        "qk_layernorm": (False, None),
        "quantization_config": (None,),
        "query_pre_attn_scalar": (None,),
        "residual_multiplier": (None, 1.0),
        "rope_interleaved": (False, None),
        "rope_local_base_freq": (None,),
        "sliding_window": (None,),
        "sliding_window_pattern": (None,),
        "use_bidirectional_attention": (False, None),
        "use_mrope": (False, None),
        "use_qk_norm": (False, None),
        "use_sliding_window": (False, None),
    }
)

# For families whose activation is not SiLU.
_GELU: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "hidden_act": ("gelu_pytorch_tanh", None),
        "hidden_activation": ("gelu_pytorch_tanh",),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How an architecture differs from a Llama.

    Attributes:
        architecture: The name in ``architectures``.
        models: Models that are published in this form, for people.
        reads: Fields of :data:`NEUTRAL` that it honours.
        neutral: Other values for fields of :data:`NEUTRAL`.
        defaults: Values of absent fields, of those without a common default.
        default_theta: Of the rotary embedding.
        local_theta: Of that of layers with a window, where it is another one.
        may_be_partly_rotary: Whether it honours ``partial_rotary_factor``.
        layers: What its layers are.
        experts: What its sparse layers hold.
        activation: See :class:`DecoderConfig`, here and below.
        norm_offset: Added to the stored weights of norms.
        is_embedding_scaled: Whether embeddings are multiplied by the root of their length.
        has_qk_norm: Whether heads are normed.
        has_post_norms: Whether results are normed.
        has_qkv_bias: Whether there are such biases without ``attention_bias``.
        is_packed: How weights are stored.
    """

    architecture: str
    models: str
    reads: frozenset[str] = frozenset()
    neutral: Mapping[str, tuple[object, ...]] = field(
        default_factory=dict[str, tuple[object, ...]]
    )
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    default_theta: float = 10_000.0
    local_theta: float | None = None
    may_be_partly_rotary: bool = False
    layers: Callable[[Fields], list[LayerConfig]] = plain_layers
    experts: Callable[[Fields], ExpertsConfig | None] = no_experts
    activation: Activation = "silu"
    norm_offset: float = 0.0
    is_embedding_scaled: bool = False
    has_qk_norm: bool = False
    has_post_norms: bool = False
    has_qkv_bias: bool = False
    is_packed: bool = False


_LONG: Mapping[str, Any] = MappingProxyType({"max_position_embeddings": 32768})
_WINDOW: Mapping[str, Any] = MappingProxyType({"sliding_window": 4096})
_UPPER_WINDOW: Mapping[str, Any] = MappingProxyType(
    {**_LONG, **_WINDOW, "max_window_layers": 28, "num_key_value_heads": 32}
)
_UPPER_WINDOW_FIELDS = frozenset(
    ("layer_types", "sliding_window", "use_sliding_window")
)
_GEMMA: Mapping[str, Any] = MappingProxyType(
    {
        **_WINDOW,
        "head_dim": 256,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "tie_word_embeddings": True,
    }
)
_GEMMA_FIELDS = frozenset(
    (
        "attention_bias",
        "final_logit_softcapping",
        "layer_types",
        "query_pre_attn_scalar",
        "sliding_window",
    )
)

_ALL = (
    Family(
        architecture="LlamaForCausalLM",
        models="Llama 2, 3, 3.1 and 3.2, SmolLM 1 and 2, TinyLlama, Yi",
        reads=frozenset(("attention_bias", "mlp_bias")),
    ),
    Family(
        architecture="MistralForCausalLM",
        models="Mistral 7B, Mistral NeMo, Mistral Small (text)",
        reads=frozenset(("sliding_window",)),
        defaults={
            **_WINDOW,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
        },
        layers=windowed_layers,
    ),
    Family(
        architecture="MixtralForCausalLM",
        models="Mixtral 8x7B and 8x22B",
        reads=frozenset(("num_local_experts", "sliding_window")),
        defaults={
            "max_position_embeddings": 131072,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "rms_norm_eps": 1e-5,
        },
        default_theta=1_000_000.0,
        layers=windowed_sparse_layers,
        experts=mixtral_experts,
    ),
    Family(
        architecture="Qwen2ForCausalLM",
        models="Qwen 2 and 2.5",
        reads=_UPPER_WINDOW_FIELDS,
        defaults=_UPPER_WINDOW,
        layers=upper_windowed_layers,
        has_qkv_bias=True,
    ),
    Family(
        architecture="Qwen3ForCausalLM",
        models="Qwen 3",
        reads=_UPPER_WINDOW_FIELDS | {"attention_bias"},
        defaults={**_UPPER_WINDOW, "head_dim": 128},
        layers=upper_windowed_layers,
        has_qk_norm=True,
    ),
    Family(
        architecture="Qwen3MoeForCausalLM",
        models="Qwen 3 with experts",
        # The window is not used unless use_sliding_window says so, which is refused.
        reads=frozenset(
            ("attention_bias", "num_experts", "num_local_experts", "sliding_window")
        ),
        defaults={
            **_LONG,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 4,
        },
        layers=sparse_layers,
        experts=qwen_experts,
        has_qk_norm=True,
    ),
    Family(
        architecture="Gemma2ForCausalLM",
        models="Gemma 2",
        reads=_GEMMA_FIELDS | {"attn_logit_softcapping"},
        neutral=_GELU,
        defaults={
            **_GEMMA,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "max_position_embeddings": 8192,
        },
        layers=alternating_layers,
        activation="gelu_tanh",
        norm_offset=1.0,
        is_embedding_scaled=True,
        has_post_norms=True,
    ),
    Family(
        architecture="Gemma3ForCausalLM",
        models="Gemma 3 (text, as the 1B)",
        reads=_GEMMA_FIELDS | {"rope_local_base_freq", "sliding_window_pattern"},
        neutral=_GELU,
        defaults={
            **_GEMMA,
            "max_position_embeddings": 131072,
            "sliding_window_pattern": 6,
        },
        default_theta=1_000_000.0,
        local_theta=10_000.0,
        layers=local_and_global_layers,
        activation="gelu_tanh",
        norm_offset=1.0,
        is_embedding_scaled=True,
        has_qk_norm=True,
        has_post_norms=True,
    ),
    Family(
        architecture="Phi3ForCausalLM",
        models="Phi-3 mini and medium, Phi-3.5 mini, Phi-4 and Phi-4 mini",
        reads=frozenset(("sliding_window",)),
        defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
        may_be_partly_rotary=True,
        layers=windowed_layers,
        is_packed=True,
    ),
    Family(
        architecture="SmolLM3ForCausalLM",
        models="SmolLM 3",
        reads=_UPPER_WINDOW_FIELDS | {"attention_bias", "mlp_bias", "no_rope_layers"},
        defaults={
            **_LONG,
            "no_rope_layer_interval": 4,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
        default_theta=2_000_000.0,
        layers=partly_rotary_layers,
    ),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({f.architecture: f for f in _ALL})
