"""What each family reads of its ``config.json``, and what it refuses by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.models.config import AttentionConfig, DecoderConfig, LayerConfig
from pie_trio.inference.models.families import FAMILIES, NEUTRAL
from pie_trio.inference.models.reading import read_decoder_config

SIZES = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
}

# Of each field a value that changes the results.
OTHER_VALUES: dict[str, object] = {
    "alibi": True,
    "attention_bias": True,
    "attention_chunk_size": 8192,
    "attention_multiplier": 0.1,
    "attn_logit_softcapping": 40.0,
    "attn_temperature_tuning": True,
    "clip_qkv": 8.0,
    "embedding_multiplier": 12.0,
    "final_logit_softcapping": 20.0,
    "hidden_act": "relu",
    "hidden_activation": "relu",
    "layer_types": ["sliding_attention"] * 6,
    "lm_head_bias": True,
    "logits_scaling": 8.0,
    "mlp_bias": True,
    "no_rope_layers": [0] * 6,
    "num_experts": 8,
    "num_local_experts": 8,
    "qk_layernorm": True,
    "quantization_config": {"bits": 4},
    "query_pre_attn_scalar": 128,
    "residual_multiplier": 0.2,
    "rope_interleaved": True,
    "rope_local_base_freq": 5.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 5,
    "use_bidirectional_attention": True,
    "use_mrope": True,
    "use_qk_norm": True,
    "use_sliding_window": True,
}


def read(architecture: str, **fields: Any) -> DecoderConfig:
    raw = {"architectures": [architecture], **SIZES, **fields}
    return read_decoder_config(raw, Path("config.json"))


def refusal(architecture: str, **fields: Any) -> str:
    with pytest.raises(ModelDirectoryError) as caught:
        read(architecture, **fields)
    return str(caught.value)


def windows(config: DecoderConfig) -> list[int | None]:
    return [layer.window for layer in config.layers]


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_family_refuses_each_field_that_it_does_not_honour(architecture: str) -> None:
    assert set(OTHER_VALUES) == set(NEUTRAL)
    family = FAMILIES[architecture]
    assert family.reads <= set(NEUTRAL)
    for name, value in OTHER_VALUES.items():
        if name not in family.reads:
            message = refusal(architecture, **{name: value})
            assert f"config.json: {name} = {value!r} is not supported" in message


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_field_that_a_family_honours_makes_a_difference(architecture: str) -> None:
    plain = read(architecture)
    # Only with another field beside it, or only where another is absent.
    idle = {"layer_types", "num_local_experts", "sliding_window", "use_sliding_window"}
    for name in FAMILIES[architecture].reads - idle:
        assert read(architecture, **{name: OTHER_VALUES[name]}) != plain, name


@pytest.mark.parametrize("architecture", FAMILIES)
def test_neutral_values_are_accepted(architecture: str) -> None:
    family = FAMILIES[architecture]
    plain = read(architecture)
    for name, values in {**NEUTRAL, **family.neutral}.items():
        for value in values if name not in family.reads else ():
            assert read(architecture, **{name: value}) == plain


@pytest.mark.parametrize("name", ["MistralForCausalLM", "Phi3ForCausalLM"])
def test_one_window_holds_for_all_layers(name: str) -> None:
    assert windows(read(name, sliding_window=7)) == [7] * 6
    assert windows(read(name, sliding_window=None)) == [None] * 6
    assert "an integer >= 1" in refusal(name, sliding_window=0)


def test_an_absent_window_of_mistral_is_the_first_models() -> None:
    assert windows(read("MistralForCausalLM")) == [4096] * 6


@pytest.mark.parametrize("name", ["Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_upper_layers_have_a_window_where_windows_are_used(name: str) -> None:
    fields = {"sliding_window": 7, "max_window_layers": 4}
    assert windows(read(name, **fields)) == [None] * 6
    used = read(name, **fields, use_sliding_window=True)
    assert windows(used) == [None] * 4 + [7] * 2
    types = ["sliding_attention", "full_attention"] * 3
    typed = read(name, **fields, use_sliding_window=True, layer_types=types)
    assert windows(typed) == [7, None] * 3


def test_every_second_layer_of_gemma_2_has_no_window() -> None:
    assert windows(read("Gemma2ForCausalLM", sliding_window=7)) == [7, None] * 3


def test_layers_of_gemma_3_have_a_window_and_a_rope_of_their_own_together() -> None:
    config = read("Gemma3ForCausalLM", sliding_window=7, sliding_window_pattern=3)
    assert windows(config) == [7, 7, None] * 2
    assert [layer.rope for layer in config.layers] == [1, 1, 0] * 2
    assert [rope.theta for rope in config.ropes] == [1_000_000.0, 10_000.0]
    assert windows(read("Gemma3ForCausalLM")) == [4096] * 5 + [None]


def test_the_ropes_of_gemma_3_read_the_same_in_both_forms() -> None:
    linear = {"rope_type": "linear", "factor": 8.0}
    old = read(
        "Gemma3ForCausalLM",
        rope_theta=500.0,
        rope_local_base_freq=50.0,
        rope_scaling=linear,
    )
    new = read(
        "Gemma3ForCausalLM",
        rope_parameters={
            "full_attention": {**linear, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    )
    assert new == old
    flat = refusal("Gemma3ForCausalLM", rope_parameters={"rope_theta": 500.0})
    assert "rope_parameters: rope_theta = 500.0 is not supported" in flat
    message = refusal(
        "Gemma3ForCausalLM",
        rope_local_base_freq=60.0,
        rope_parameters={"sliding_attention": {"rope_theta": 50.0}},
    )
    assert "rope_theta should be the same wherever it is given" in message


def test_every_fourth_layer_of_smollm_3_has_no_rope() -> None:
    config = read("SmolLM3ForCausalLM")
    assert [layer.rope for layer in config.layers] == [0, 0, 0, None, 0, 0]
    listed = read("SmolLM3ForCausalLM", no_rope_layers=[1, 0] * 4)
    assert [layer.rope for layer in listed.layers] == [0, None] * 3
    used = read("SmolLM3ForCausalLM", sliding_window=7, use_sliding_window=True)
    assert windows(used) == [None, None, None, 7, None, None]


@pytest.mark.parametrize("value", [[1, 0], [1, 2] * 3, [True, False] * 3, 4])
def test_no_other_list_says_which_layers_rotate(value: object) -> None:
    message = refusal("SmolLM3ForCausalLM", no_rope_layers=value)
    assert "no_rope_layers should be a list of 6 numbers" in message


@pytest.mark.parametrize(
    "types", [["full_attention"] * 5, ["chunked_attention"] * 6, [3] * 6, "x"]
)
def test_layers_of_other_types_are_refused(types: object) -> None:
    message = refusal("Qwen3ForCausalLM", layer_types=types)
    assert "layer_types should be a list of 6 of full_attention and" in message


@pytest.mark.parametrize("name", ["Gemma2ForCausalLM", "Gemma3ForCausalLM"])
def test_layers_with_a_window_need_its_size(name: str) -> None:
    assert "sliding_window should be a number" in refusal(name, sliding_window=None)


def test_sparse_layers_are_those_that_are_not_listed_as_dense() -> None:
    config = read("Qwen3MoeForCausalLM", decoder_sparse_step=2, mlp_only_layers=[3])
    is_sparse = [layer.is_sparse for layer in config.layers]
    assert is_sparse == [False, True, False, False, False, True]
    assert all(layer.is_sparse for layer in read("MixtralForCausalLM").layers)


@pytest.mark.parametrize(
    ("name", "fields", "expected"),
    [
        (
            "Qwen3MoeForCausalLM",
            {"num_experts": 4, "num_local_experts": 5},
            "num_experts should be the same under both names",
        ),
        ("Qwen3MoeForCausalLM", {"num_experts": 4}, "num_experts_per_tok should be"),
        ("Qwen3MoeForCausalLM", {"mlp_only_layers": 3}, "a list of indices of layers"),
        ("MixtralForCausalLM", {"num_experts_per_tok": 9}, "at most 8, but it is 9"),
        ("Qwen3MoeForCausalLM", {"norm_topk_prob": 1}, "true or false, but it is 1"),
    ],
)
def test_impossible_experts_are_refused(
    name: str, fields: dict[str, Any], expected: str
) -> None:
    assert expected in refusal(name, **fields)


def test_layers_with_the_same_window_are_planned_once() -> None:
    layers = [LayerConfig(7), LayerConfig(None), LayerConfig(7), LayerConfig(9)]
    config = AttentionConfig.of_layers(layers, scale=1.0, softcap=None)
    assert config.windows == (7, None, 9)
    assert config.window_of_layer == (0, 1, 0, 2)


def test_absent_fields_have_the_defaults_of_transformers() -> None:
    transformers: Any = pytest.importorskip("transformers")
    for architecture, family in FAMILIES.items():
        theirs = getattr(transformers, architecture).config_class
        for left_out in ((), ("num_key_value_heads",)):
            sizes = {n: v for n, v in SIZES.items() if n not in left_out}
            if architecture != "Qwen3MoeForCausalLM":
                sizes["num_attention_heads"] = 32  # what the default of 32 divides
            raw = {"architectures": [architecture], **sizes}
            saved = {**theirs(**sizes).to_dict(), "architectures": [architecture]}
            found, expected = (
                read_decoder_config(fields, Path("config.json"))
                for fields in (raw, saved)
            )
            assert found == expected, family.models


def test_the_documentation_lists_all_families() -> None:
    page = Path(__file__).parents[2] / "docs/reference/models.md"
    rows = [line.split(" | ") for line in page.read_text().splitlines()]
    listed = {row[0].strip("| `"): row[1] for row in rows if row[0].startswith("| `")}
    families = {name: family.models for name, family in FAMILIES.items()}
    assert families.items() <= listed.items()
    assert not {n for n in listed if n.endswith("CausalLM")} - set(families)
