"""From a ``config.json`` to a :class:`~pie_trio.inference.models.config.DecoderConfig`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.json_files import json_list
from pie_trio.inference.models.config import AttentionConfig, DecoderConfig
from pie_trio.inference.models.families import FAMILIES, NEUTRAL
from pie_trio.inference.models.fields import Fields
from pie_trio.inference.models.rope_fields import read_local_rope, read_rope

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pie_trio.inference.models.families import Family
    from pie_trio.inference.models.rope_fields import Rope

__all__ = ["read_decoder_config"]


def read_decoder_config(raw: Mapping[str, Any], source: Path) -> DecoderConfig:
    """Return the checked configuration of a model of one of the families.

    Args:
        raw: The parsed ``config.json``.
        source: Where it came from, for messages.

    Raises:
        ModelDirectoryError: The architecture is unknown, a field is missing or has an
            impossible value, or a field asks for mathematics that is not implemented.
    """
    family = _family(Fields(raw, source))
    fields = Fields(raw, source).with_defaults(family.defaults)
    for name, allowed in {**NEUTRAL, **family.neutral}.items():
        if name not in family.reads:
            fields.require_neutral(name, allowed)
    hidden_size = fields.integer("hidden_size")
    num_heads = fields.integer("num_attention_heads")
    num_kv_heads = fields.integer("num_key_value_heads", default=num_heads)
    if num_heads % num_kv_heads:
        raise fields.error(
            "num_key_value_heads",
            f"a divisor of num_attention_heads ({num_heads})",
            num_kv_heads,
        )
    head_dim = _head_dim(fields, hidden_size, num_heads)
    layers = tuple(family.layers(fields))
    ropes = _ropes(family, fields, head_dim)
    has_attention_bias = _honours(family, fields, "attention_bias")
    return DecoderConfig(
        architecture=family.architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        layers=layers,
        attention=AttentionConfig.of_layers(
            layers,
            scale=fields.number("query_pre_attn_scalar", default=head_dim) ** -0.5,
            softcap=fields.optional_number("attn_logit_softcapping"),
        ),
        ropes=ropes,
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        norm_offset=family.norm_offset,
        activation=family.activation,
        embedding_scale=hidden_size**0.5 if family.is_embedding_scaled else 1.0,
        logit_softcap=fields.optional_number("final_logit_softcapping"),
        has_qk_norm=family.has_qk_norm,
        has_post_norms=family.has_post_norms,
        has_qkv_bias=family.has_qkv_bias or has_attention_bias,
        has_output_bias=has_attention_bias,
        has_mlp_bias=_honours(family, fields, "mlp_bias"),
        is_packed=family.is_packed,
        experts=family.experts(fields),
        max_positions=_max_positions(fields, ropes),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        stored_dtype=_stored_dtype(fields),
    )


def _family(fields: Fields) -> Family:
    value: object = fields.raw.get("architectures")
    supported = ", ".join(sorted(FAMILIES))
    architectures = json_list(value)
    if not architectures:
        raise fields.error("architectures", f"a list with one of {supported}", value)
    name: object = architectures[0]
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelDirectoryError(
            f"{fields.source}: the architecture {name!r} is not supported; "
            f"supported are: {supported}"
        )
    return FAMILIES[name]


def _honours(family: Family, fields: Fields, name: str) -> bool:
    return name in family.reads and fields.boolean(name, default=False)


def _head_dim(fields: Fields, hidden_size: int, num_heads: int) -> int:
    if fields.raw.get("head_dim") is None and hidden_size % num_heads:
        raise fields.error(
            "hidden_size",
            f"a multiple of num_attention_heads ({num_heads}) where head_dim is absent",
            hidden_size,
        )
    head_dim = fields.integer("head_dim", default=hidden_size // num_heads)
    if head_dim % 2:
        raise fields.error("head_dim", "even, as rotary embeddings need", head_dim)
    return head_dim


def _ropes(family: Family, fields: Fields, head_dim: int) -> tuple[Rope, ...]:
    if family.local_theta is not None:
        return read_local_rope(
            fields,
            head_dim=head_dim,
            default_theta=family.default_theta,
            local_theta=family.local_theta,
        )
    rope = read_rope(
        fields,
        head_dim=head_dim,
        default_theta=family.default_theta,
        may_be_partial=family.may_be_partly_rotary,
    )
    return (rope,)


def _max_positions(fields: Fields, ropes: tuple[Rope, ...]) -> int:
    """Return the longest context; longrope is used only as far as its short factors go."""
    positions = fields.integer("max_position_embeddings", default=2048)
    bounds = [r.original_positions for r in ropes if r.kind == "longrope"]
    return min(positions, *bounds) if bounds else positions


def _stored_dtype(fields: Fields) -> str | None:
    value = fields.raw.get("dtype", fields.raw.get("torch_dtype"))  # new name, old name
    if value is not None and not isinstance(value, str):
        raise fields.error("torch_dtype", "the name of a dtype", value)
    return value
