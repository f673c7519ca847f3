"""What a ``config.json`` says of rotary embeddings, in its old and its new way of saying it.

transformers 5 writes ``rope_parameters``; before, there were ``rope_theta`` and ``rope_scaling``.
Both read the same, and a file that has both must say the same in both. No torch here: the
frequencies are computed by :mod:`pie_trio.inference.models.rope`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pie_trio.inference.models.fields import Fields

__all__ = ["Rope", "read_local_rope", "read_rope"]


@dataclass(frozen=True, slots=True)
class Rope:
    """One rotary embedding.

    Attributes:
        kind: ``default``, ``linear``, ``llama3``, ``yarn`` or ``longrope``.
        theta: Base of the frequencies.
        dim: The dimensions of a head that are rotated, from the first on; even.
        attention_factor: Cosine and sine are multiplied by it.
        factor: By how much contexts are longer than in the first training.
        original_positions: Longest context of the first training.
        low_freq_factor: Of llama3.
        high_freq_factor: Of llama3.
        beta_fast: Of yarn.
        beta_slow: Of yarn.
        is_truncated: Whether yarn rounds the bounds of its ramp.
        short_factors: ``dim / 2`` of longrope, by which frequencies are divided.
    """

    kind: str
    theta: float
    dim: int
    attention_factor: float = 1.0
    factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    is_truncated: bool = True
    short_factors: tuple[float, ...] = ()


def read_rope(
    fields: Fields, *, head_dim: int, default_theta: float, may_be_partial: bool = False
) -> Rope:
    """Return the rotary embedding of all layers, or of those without a window.

    Args:
        fields: Of the whole ``config.json``.
        head_dim: Of the model.
        default_theta: Where none is given.
        may_be_partial: Whether the family honours ``partial_rotary_factor``.

    Raises:
        ModelDirectoryError: It is of an unknown kind, or the file contradicts itself.
    """
    objects = {
        name: fields.raw.get(name) for name in ("rope_parameters", "rope_scaling")
    }
    return _read(fields, objects, "rope_theta", head_dim, default_theta, may_be_partial)


def read_local_rope(
    fields: Fields, *, head_dim: int, default_theta: float, local_theta: float
) -> tuple[Rope, Rope]:
    """Return the rotary embeddings of layers without and with a window, where they differ.

    ``rope_parameters`` holds an object for each of the two then; before, ``rope_scaling`` was
    about the layers without a window, and ``rope_local_base_freq`` about the others.

    Raises:
        ModelDirectoryError: As :func:`read_rope`.
    """
    both = fields.raw.get("rope_parameters")
    of_kind: Mapping[str, object] = {}
    if both is not None:
        inner = fields.inner("rope_parameters", both)
        inner.require_known(frozenset(("full_attention", "sliding_attention")))
        of_kind = inner.raw
    everywhere = {
        "rope_parameters: full_attention": of_kind.get("full_attention"),
        "rope_scaling": fields.raw.get("rope_scaling"),
    }
    local = {"rope_parameters: sliding_attention": of_kind.get("sliding_attention")}
    return (
        _read(fields, everywhere, "rope_theta", head_dim, default_theta, False),
        _read(fields, local, "rope_local_base_freq", head_dim, local_theta, False),
    )


def _read(
    fields: Fields,
    objects: Mapping[str, object],
    theta_name: str,
    head_dim: int,
    default_theta: float,
    may_be_partial: bool,
) -> Rope:
    """Read what is given at the top and inside of objects; all of it must agree."""
    given = {n: fields.inner(n, v) for n, v in objects.items() if v is not None}
    if not may_be_partial:
        for where in (fields, *given.values()):
            where.require_neutral("partial_rotary_factor", (None, 1.0))
    theta = _agreed(fields, theta_name, given, "rope_theta")
    share = _agreed(fields, "partial_rotary_factor", given, "partial_rotary_factor")
    original = _agreed(fields, _ORIGINAL, given, _ORIGINAL)
    plain = Rope(
        kind="default",
        theta=default_theta if theta is None else theta,
        dim=_rotated_dim(fields, head_dim, 1.0 if share is None else share),
    )
    ropes = {n: _scaled(inner, fields, plain, original) for n, inner in given.items()}
    if len(set(ropes.values())) > 1:
        names = " and ".join(ropes)
        raise fields.error(names, "the same rotary embedding", dict(objects))
    return next(iter(ropes.values()), plain)


def _agreed(
    fields: Fields, top: str, given: Mapping[str, Fields], name: str
) -> float | None:
    """Return a number that may be given in several places, if it is given in one."""
    found = {n: inner.optional_number(name) for n, inner in given.items()}
    found[top] = fields.optional_number(top)
    values = {n: value for n, value in found.items() if value is not None}
    if len(set(values.values())) > 1:
        raise fields.error(name, "the same wherever it is given", values)
    return next(iter(values.values()), None)


def _rotated_dim(fields: Fields, head_dim: int, share: float) -> int:
    dim = int(head_dim * share)
    if share > 1 or dim < 2 or dim % 2:
        raise fields.error(
            "partial_rotary_factor",
            f"such a share of head_dim ({head_dim}) that an even number is rotated",
            share,
        )
    return dim


def _scaled(inner: Fields, outer: Fields, plain: Rope, original: float | None) -> Rope:
    kind = _kind(inner)
    inner.require_known(_COMMON | _PARAMETERS[kind])
    if kind == "default":
        return plain
    longest = outer.integer("max_position_embeddings", default=2048)
    if original is None and kind == "longrope":
        outer.integer("original_max_position_embeddings")  # raises: it has no default
    rope = replace(
        plain,
        kind=kind,
        original_positions=longest if original is None else int(original),
    )
    return _READERS[kind](inner, rope, longest)


def _kind(inner: Fields) -> str:
    names = {n: inner.raw[n] for n in ("rope_type", "type") if inner.raw.get(n)}
    kinds = {"longrope" if v == "su" else v for v in names.values()}  # its first name
    if len(kinds) > 1:
        raise inner.error("rope_type", "the same as type", names)
    kind = next(iter(kinds), "default")
    if not isinstance(kind, str) or kind not in _PARAMETERS:
        supported = ", ".join(repr(k) for k in _PARAMETERS)
        raise inner.unsupported(next(iter(names)), kind, f"one of {supported}")
    return kind


def _linear(inner: Fields, rope: Rope, longest: int) -> Rope:
    return replace(rope, factor=inner.number("factor"), original_positions=0)


def _llama3(inner: Fields, rope: Rope, longest: int) -> Rope:
    low, high = inner.number("low_freq_factor"), inner.number("high_freq_factor")
    if low >= high:
        raise inner.error("high_freq_factor", f"above low_freq_factor ({low})", high)
    factor = inner.number("factor")
    return replace(rope, factor=factor, low_freq_factor=low, high_freq_factor=high)


def _yarn(inner: Fields, rope: Rope, longest: int) -> Rope:
    if rope.theta <= 1:
        raise inner.error("rope_theta", "above 1", rope.theta)
    factor = inner.number("factor")
    attention_factor = inner.optional_number("attention_factor")
    if attention_factor is None:
        of_all = inner.optional_number("mscale_all_dim")
        scale = inner.optional_number("mscale")
        if scale is None or of_all is None:
            scale, of_all = 1.0, 0.0
        attention_factor = _yarn_scale(factor, scale) / _yarn_scale(factor, of_all)
    return replace(
        rope,
        factor=factor,
        attention_factor=attention_factor,
        beta_fast=inner.number("beta_fast", default=32.0),
        beta_slow=inner.number("beta_slow", default=1.0),
        is_truncated=inner.boolean("truncate", default=True),
    )


def _yarn_scale(factor: float, scale: float) -> float:
    """See Peng et al. 2023, arXiv:2309.00071, equation 22."""
    return 0.1 * scale * math.log(max(factor, 1.0)) + 1.0


def _longrope(inner: Fields, rope: Rope, longest: int) -> Rope:
    original = rope.original_positions
    attention_factor = inner.optional_number("attention_factor")
    if attention_factor is None:
        factor = inner.number("factor", default=longest / original)
        growth = math.log(max(factor, 1.0)) / math.log(max(original, 2))
        attention_factor = math.sqrt(1.0 + growth)
    inner.numbers("long_factor", rope.dim // 2)  # not used, but checked
    return replace(
        rope,
        attention_factor=attention_factor,
        short_factors=inner.numbers("short_factor", rope.dim // 2),
    )


_COMMON = frozenset(("rope_type", "type", "rope_theta", "partial_rotary_factor"))
_ORIGINAL = "original_max_position_embeddings"
_YARN = ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")

# What each kind reads; another field is refused.
_PARAMETERS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "default": frozenset(),
        "linear": frozenset(("factor",)),
        "llama3": frozenset(
            ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)
        ),
        "yarn": frozenset(("factor", "truncate", *_YARN, _ORIGINAL)),
        "longrope": frozenset(
            ("attention_factor", "factor", "long_factor", "short_factor", _ORIGINAL)
        ),
    }
)

_READERS: Mapping[str, Callable[[Fields, Rope, int], Rope]] = MappingProxyType(
    {"linear": _linear, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}
)
