"""The kinds of layers that families have, and what their sparse layers hold.

Each function reads them from a ``config.json`` and raises
:class:`~pie_trio.errors.ModelDirectoryError` where a field has an impossible value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.inference.json_files import json_list
from pie_trio.inference.models.config import ExpertsConfig, LayerConfig

if TYPE_CHECKING:
    from pie_trio.inference.models.fields import Fields

__all__ = [
    "alternating_layers",
    "local_and_global_layers",
    "mixtral_experts",
    "no_experts",
    "partly_rotary_layers",
    "plain_layers",
    "qwen_experts",
    "sparse_layers",
    "upper_windowed_layers",
    "windowed_layers",
    "windowed_sparse_layers",
]


def no_experts(fields: Fields) -> ExpertsConfig | None:
    """No layer is sparse."""
    return None


def plain_layers(fields: Fields) -> list[LayerConfig]:
    """No windows, and one rotary embedding everywhere."""
    return [LayerConfig()] * fields.integer("num_hidden_layers")


def windowed_layers(fields: Fields) -> list[LayerConfig]:
    """One window for all layers, or none."""
    layer = LayerConfig(window=fields.optional_integer("sliding_window"))
    return [layer] * fields.integer("num_hidden_layers")


def upper_windowed_layers(fields: Fields) -> list[LayerConfig]:
    """A window from some layer on, if windows are used at all."""
    is_used = fields.boolean("use_sliding_window", default=False)
    window = fields.optional_integer("sliding_window") if is_used else None
    first = fields.integer("max_window_layers", least=0) if window else 0
    count = fields.integer("num_hidden_layers")
    return _typed(fields, window, [bool(window) and i >= first for i in range(count)])


def alternating_layers(fields: Fields) -> list[LayerConfig]:
    """All layers have a window but every second one."""
    return _every_nth_without(fields, 2)


def local_and_global_layers(fields: Fields) -> list[LayerConfig]:
    """All layers have a window but each nth; where it is local, so is the rope."""
    layers = _every_nth_without(fields, fields.integer("sliding_window_pattern"))
    return [LayerConfig(x.window, 0 if x.window is None else 1) for x in layers]


def _every_nth_without(fields: Fields, n: int) -> list[LayerConfig]:
    count = fields.integer("num_hidden_layers")
    window = fields.optional_integer("sliding_window")
    return _typed(fields, window, [bool((i + 1) % n) for i in range(count)])


def partly_rotary_layers(fields: Fields) -> list[LayerConfig]:
    """Some layers have no rotary embedding, and only those may have a window."""
    count = fields.integer("num_hidden_layers")
    interval = fields.integer("no_rope_layer_interval")
    value: object = fields.raw.get("no_rope_layers")
    is_rotary = [bool((i + 1) % interval) for i in range(count)]
    if value is not None:
        flags = json_list(value)
        if flags is None or len(flags) < count or not {*map(repr, flags)} <= {"0", "1"}:
            expected = f"a list of {count} numbers, 1 where a layer rotates and else 0"
            raise fields.error("no_rope_layers", expected, value)
        is_rotary = [flag == 1 for flag in flags[:count]]
    is_used = fields.boolean("use_sliding_window", default=False)
    window = fields.optional_integer("sliding_window") if is_used else None
    layers = _typed(fields, window, [bool(window) and not r for r in is_rotary])
    return [
        LayerConfig(layer.window, 0 if rotates else None)
        for layer, rotates in zip(layers, is_rotary, strict=True)
    ]


def _typed(
    fields: Fields, window: int | None, has_window: list[bool]
) -> list[LayerConfig]:
    """Let ``layer_types`` decide, if given, which layers have the window."""
    value: object = fields.raw.get("layer_types")
    if value is not None:
        types = json_list(value)
        names = ("full_attention", "sliding_attention")
        if types is None or len(types) != len(has_window) or not {*types} <= {*names}:
            expected = f"a list of {len(has_window)} of {' and '.join(names)}"
            raise fields.error("layer_types", expected, value)
        has_window = [name == "sliding_attention" for name in types]
    if window is None and any(has_window):
        expected = "a number, as some layers have a window"
        raise fields.error("sliding_window", expected, None)
    return [LayerConfig(window=window if has else None) for has in has_window]


def sparse_layers(fields: Fields) -> list[LayerConfig]:
    """Experts in every nth layer but in those of a list."""
    step = fields.integer("decoder_sparse_step")
    dense: object = fields.raw.get("mlp_only_layers") or []
    if (indices := json_list(dense)) is None:
        raise fields.error("mlp_only_layers", "a list of indices of layers", dense)
    return [
        LayerConfig(is_sparse=(i + 1) % step == 0 and i not in indices)
        for i in range(fields.integer("num_hidden_layers"))
    ]


def windowed_sparse_layers(fields: Fields) -> list[LayerConfig]:
    """Experts in all layers, with one window or none."""
    return [LayerConfig(x.window, is_sparse=True) for x in windowed_layers(fields)]


def qwen_experts(fields: Fields) -> ExpertsConfig:
    """As in Qwen 3."""
    # transformers 5 saves this number under the other name.
    names = ("num_experts", "num_local_experts")
    given = {name: fields.optional_integer(name) for name in names}
    counts = {count for count in given.values() if count is not None} or {128}
    if len(counts) > 1:
        raise fields.error("num_experts", "the same under both names", given)
    count = counts.pop()
    return ExpertsConfig(
        count=count,
        per_token=_experts_per_token(fields, count),
        intermediate_size=fields.integer("moe_intermediate_size"),
        is_normalized=fields.boolean("norm_topk_prob", default=False),
        block="mlp",
        gate="gate_proj",
        up="up_proj",
        down="down_proj",
    )


def mixtral_experts(fields: Fields) -> ExpertsConfig:
    """As in Mixtral, where they have other names."""
    return ExpertsConfig(
        count=fields.integer("num_local_experts"),
        per_token=_experts_per_token(fields, fields.integer("num_local_experts")),
        intermediate_size=fields.integer("intermediate_size"),
        is_normalized=True,
        block="block_sparse_moe",
        gate="w1",
        up="w3",
        down="w2",
    )


def _experts_per_token(fields: Fields, count: int) -> int:
    per_token = fields.integer("num_experts_per_tok")
    if per_token > count:
        raise fields.error("num_experts_per_tok", f"at most {count}", per_token)
    return per_token
