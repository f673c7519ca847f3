"""Rotary embeddings: both ways of writing them down, and what transformers makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.models.fields import Fields
from pie_trio.inference.models.reading import read_decoder_config
from pie_trio.inference.models.rope import inverse_frequencies
from pie_trio.inference.models.rope_fields import Rope, read_rope

SOURCE = Path("config.json")
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0 + 0.01 * i for i in range(32)],
    "long_factor": [1.0 + 2.0 * i for i in range(32)],
    "original_max_position_embeddings": 4096,
}
SCALINGS = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    LLAMA3,
    {**LLAMA3, "factor": 8.0, "low_freq_factor": 1.5, "high_freq_factor": 3.0},
    YARN,
    {**YARN, "truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
    {**YARN, "attention_factor": 0.7},
    {**YARN, "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0},
    {**YARN, "factor": 40.0, "mscale": 0.707},
    {**YARN, "original_max_position_embeddings": 16, "beta_fast": 1.0},
    LONGROPE,
    {**LONGROPE, "attention_factor": 1.25},
    {**LONGROPE, "factor": 16.0},
]


def read(
    top: dict[str, Any] | None = None, *, may_be_partial: bool = False, **fields: Any
) -> Rope:
    """Read a config with ``rope_scaling`` or ``rope_parameters`` among its fields."""
    raw = {"max_position_embeddings": 131072, **(top or {}), **fields}
    return read_rope(
        Fields(raw, SOURCE),
        head_dim=64,
        default_theta=10_000.0,
        may_be_partial=may_be_partial,
    )


def refusal(**fields: Any) -> str:
    with pytest.raises(ModelDirectoryError) as caught:
        read(**fields)
    return str(caught.value)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_frequencies_are_those_of_transformers(scaling: dict[str, Any]) -> None:
    transformers: Any = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {**scaling, "rope_theta": 500_000.0}
    config = transformers.LlamaConfig(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=dict(parameters),
    )
    rope = read(rope_parameters=parameters)
    if scaling["rope_type"] == "default":
        plain = 500_000.0 ** -(torch.arange(0, 64, 2) / 64.0)
        expected, factor = plain, 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, None)
    torch.testing.assert_close(inverse_frequencies(rope), expected, rtol=2e-6, atol=0)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_old_and_new_fields_read_the_same(scaling: dict[str, Any]) -> None:
    old_name = {"type" if n == "rope_type" else n: v for n, v in scaling.items()}
    new = read(rope_parameters={**scaling, "rope_theta": 77.0})
    for form in (scaling, old_name):
        assert read({"rope_theta": 77.0}, rope_scaling=form) == new
    both = read({"rope_theta": 77}, rope_scaling=scaling, rope_parameters=scaling)
    assert both == new
    assert new.theta == 77.0
    assert new.kind == scaling["rope_type"]


def test_the_original_length_may_stand_at_the_top() -> None:
    inside = read(rope_scaling=LONGROPE)
    scaling = {n: v for n, v in LONGROPE.items() if not n.startswith("original")}
    top = {"original_max_position_embeddings": 4096}
    assert read(top, rope_scaling=scaling) == inside
    assert read(top, rope_scaling=LONGROPE) == inside


def test_without_an_original_length_the_longest_context_counts() -> None:
    scaling = {n: v for n, v in YARN.items() if not n.startswith("original")}
    assert read(rope_scaling=scaling).original_positions == 131072


def test_the_first_name_of_longrope_is_known() -> None:
    assert read(rope_scaling={**LONGROPE, "rope_type": "su"}) == read(
        rope_scaling=LONGROPE
    )


def test_a_part_of_the_head_is_rotated_where_the_family_says_so() -> None:
    for fields in (
        {"partial_rotary_factor": 0.75},
        {"rope_parameters": {"partial_rotary_factor": 0.75}},
    ):
        assert read(fields, may_be_partial=True).dim == 48
        assert "partial_rotary_factor = 0.75 is not supported" in refusal(**fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_scaling: type = 'dynamic' is not supported (only one of 'default'",
        ),
        (
            {"rope_scaling": {"type": "mrope", "rope_type": "default"}},
            "rope_type should be the same as type",
        ),
        (
            {"rope_parameters": {"mrope_section": [16, 24, 24]}},
            "rope_parameters: mrope_section = [16, 24, 24] is not supported",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 7.0}}},
            "full_attention = {'rope_theta': 7.0} is not supported",
        ),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0}},
            "beta_fast = 3.0 is not supported (only null is)",
        ),
        ({"rope_scaling": LLAMA3, "rope_parameters": {"rope_theta": 7.0}}, "the same"),
        (
            {"rope_theta": 7.0, "rope_parameters": {"rope_theta": 8.0}},
            "rope_theta should be the same wherever it is given",
        ),
        (
            {"original_max_position_embeddings": 4096, "rope_scaling": YARN},
            "original_max_position_embeddings should be the same wherever it is given",
        ),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "a number > 0"),
        (
            {"rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}},
            "high_freq_factor should be above low_freq_factor (1.0)",
        ),
        (
            {"rope_theta": 1.0, "rope_scaling": YARN},
            "rope_theta should be above 1",
        ),
        (
            {"rope_scaling": {**LONGROPE, "short_factor": [1.0]}},
            "short_factor should be a list of 32 numbers > 0",
        ),
        (
            {"rope_scaling": {**LONGROPE, "long_factor": None}},
            "long_factor is missing, expected a list of 32 numbers > 0",
        ),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [], "factor": 2}},
            "original_max_position_embeddings is missing",
        ),
        ({"rope_scaling": []}, "rope_scaling should be null or an object"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    fields: dict[str, Any], expected: str
) -> None:
    message = refusal(**fields)
    assert expected in message
    assert message.startswith("config.json")


@pytest.mark.parametrize("share", [0.01, 0.05, 1.5])
def test_an_impossible_part_of_the_head_is_refused(share: float) -> None:
    with pytest.raises(ModelDirectoryError, match="an even number is rotated"):
        read({"partial_rotary_factor": share}, may_be_partial=True)


def test_longrope_serves_contexts_as_long_as_its_short_factors_go() -> None:
    raw = {
        "architectures": ["Phi3ForCausalLM"],
        "vocab_size": 100,
        "hidden_size": 256,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "max_position_embeddings": 131072,
        "rope_scaling": LONGROPE,
    }
    assert read_decoder_config(raw, SOURCE).max_positions == 4096
