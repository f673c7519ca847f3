"""What a ``config.json`` says of a decoder, checked; no weights and no torch here.

A family declares what it reads differently and which fields it cannot honour, so that a model
whose mathematics we do not implement is refused by name instead of served wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.json_files import json_list

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["FAMILIES", "DecoderConfig", "Family", "read_decoder_config"]

# Fields that change the mathematics, with the values under which they change nothing.
# An absent field changes nothing either.
_NEUTRAL: Mapping[str, tuple[object, ...]] = MappingProxyType(
    {
        "attention_bias": (False, None),
        "attn_logit_softcapping": (None,),
        "final_logit_softcapping": (None,),
        "hidden_act": ("silu",),
        "mlp_bias": (False, None),
        "num_local_experts": (None, 0, 1),
        "partial_rotary_factor": (None, 1.0),
        "quantization_config": (None,),
        "sliding_window": (None,),
    }
)


@dataclass(frozen=True, slots=True)
class Family:
    """How an architecture reads its ``config.json``.

    Attributes:
        architecture: The name in ``architectures``.
        neutral: Fields that must be absent or have one of these values.
    """

    architecture: str
    neutral: Mapping[str, tuple[object, ...]]


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {family.architecture: family for family in (Family("LlamaForCausalLM", _NEUTRAL),)}
)


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The numbers that fix a decoder's mathematics.

    Attributes:
        max_positions: Longest context that the model was made for; not enforced.
        stored_dtype: As the file names it, for example ``bfloat16``; None if it does not.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    max_positions: int
    tie_word_embeddings: bool
    stored_dtype: str | None


def read_decoder_config(raw: Mapping[str, Any], source: Path) -> DecoderConfig:
    """Return the checked configuration of a model of one of :data:`FAMILIES`.

    Args:
        raw: The parsed ``config.json``.
        source: Where it came from, for messages.

    Raises:
        ModelDirectoryError: The architecture is unknown, a field is missing or has an
            impossible value, or a field asks for mathematics that is not implemented.
    """
    fields = _Fields(raw, source)
    family = _family(fields)
    for name, allowed in family.neutral.items():
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
    return DecoderConfig(
        architecture=family.architecture,
        vocab_size=fields.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=_head_dim(fields, hidden_size, num_heads),
        rms_norm_eps=fields.number("rms_norm_eps", default=1e-6),
        rope_theta=_rope_theta(fields),
        max_positions=fields.integer("max_position_embeddings", default=2048),
        tie_word_embeddings=fields.boolean("tie_word_embeddings", default=False),
        stored_dtype=_stored_dtype(fields),
    )


@dataclass(frozen=True, slots=True)
class _Fields:
    """Typed access to the fields of one JSON object."""

    raw: Mapping[str, Any]
    source: Path

    def error(self, name: str, expected: str, found: object) -> ModelDirectoryError:
        return ModelDirectoryError(
            f"{self.source}: {name} should be {expected}, but it is {found!r}: "
            "correct the file, or serve another model"
        )

    def integer(self, name: str, *, default: int | None = None) -> int:
        value = self._value(name, "an integer >= 1", default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.error(name, "an integer >= 1", value)
        return value

    def number(self, name: str, *, default: float | None = None) -> float:
        expected = "a number > 0"
        value = self._value(name, expected, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, expected, value)
        if not 0 < value < float("inf"):
            raise self.error(name, expected, value)
        return float(value)

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self._value(name, "true or false", default)
        if not isinstance(value, bool):
            raise self.error(name, "true or false", value)
        return value

    def require_neutral(self, name: str, allowed: tuple[object, ...]) -> None:
        value = self.raw.get(name, allowed[0])
        # 1 is 1.0 in JSON, but not true.
        is_bool = isinstance(value, bool)
        if not any(value == a and is_bool == isinstance(a, bool) for a in allowed):
            choices = " or ".join(repr(a) for a in allowed)
            raise ModelDirectoryError(
                f"{self.source}: {name} = {value!r} is not supported (only {choices} is), "
                "and ignoring it would change the results: serve another model"
            )

    def _value(self, name: str, expected: str, default: object) -> Any:
        value = self.raw.get(name)
        if value is None:
            value = default
        if value is None:
            raise ModelDirectoryError(
                f"{self.source}: {name} is missing, expected {expected}: "
                "download the complete config.json of the model"
            )
        return value


def _family(fields: _Fields) -> Family:
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


def _head_dim(fields: _Fields, hidden_size: int, num_heads: int) -> int:
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


def _rope_theta(fields: _Fields) -> float:
    """Read ``rope_theta`` from the top level or, as transformers 5 writes it, from inside.

    Cases: top level only; ``rope_parameters`` only; both and equal; both and different (an
    error); neither (10,000, the default of transformers).
    """
    nested: dict[str, float] = {}
    for name in ("rope_parameters", "rope_scaling"):
        value: object = fields.raw.get(name)
        if value is None:
            continue
        inner = _plain_rope(fields, name, value)
        if inner is not None:
            nested[name] = inner
    top = fields.raw.get("rope_theta")
    found = {
        **nested,
        **({} if top is None else {"rope_theta": fields.number("rope_theta")}),
    }
    if len(set(found.values())) > 1:
        raise fields.error("rope_theta", "the same wherever it is given", found)
    return next(iter(found.values()), 10_000.0)


def _plain_rope(fields: _Fields, name: str, value: object) -> float | None:
    """Return the theta inside a rope object, after checking that it scales nothing."""
    if not isinstance(value, dict):
        raise fields.error(name, "null or an object", value)
    inner = _Fields(value, Path(f"{fields.source}: {name}"))  # pyright: ignore[reportUnknownArgumentType] -- JSON
    kind = inner.raw.get("rope_type", inner.raw.get("type", "default"))
    if kind != "default":
        raise ModelDirectoryError(
            f"{fields.source}: {name} of type {kind!r} is not supported (only null and "
            "'default' are), and ignoring it would change the results: serve another model"
        )
    inner.require_neutral("partial_rotary_factor", (None, 1.0))
    return None if inner.raw.get("rope_theta") is None else inner.number("rope_theta")


def _stored_dtype(fields: _Fields) -> str | None:
    value = fields.raw.get("dtype", fields.raw.get("torch_dtype"))  # new name, old name
    if value is not None and not isinstance(value, str):
        raise fields.error("torch_dtype", "the name of a dtype", value)
    return value
