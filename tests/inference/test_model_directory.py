from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pie_trio.errors import ModelDirectoryError
from pie_trio.inference.engine import open_engine
from pie_trio.inference.model_directory import read_model_directory
from tests.inference.contexts import Context, run
from tests.model_factory import LlamaShape, write_llama_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_llama_directory(tmp_path / "model")


def edit_json(path: Path, **fields: Any) -> None:
    value = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**value, **fields}))


def edit_tensors(
    path: Path, change: Callable[[dict[str, torch.Tensor]], object]
) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refusal(directory: Path) -> str:
    """Open a directory and return the message with which it is refused."""
    with pytest.raises(ModelDirectoryError) as caught:
        open_engine(directory, name="m", num_pages=2, num_threads=1)
    message = str(caught.value)
    assert str(directory) in message  # it says where
    return message


def test_a_good_directory_is_read(directory: Path) -> None:
    found = read_model_directory(directory)
    config = found.config
    assert config.architecture == "LlamaForCausalLM"
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (6, 2, 8)
    assert [rope.theta for rope in config.ropes] == [10_000.0]
    assert found.eos_token_ids == (257,)
    assert found.prompt_template == ""


def test_the_path_may_be_a_string(directory: Path) -> None:
    assert read_model_directory(str(directory)).path == directory


def test_optional_fields_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    absent = dict.fromkeys(
        ("num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings")
    )
    shape = LlamaShape(num_heads=4, num_kv_heads=4)
    directory = write_llama_directory(
        tmp_path,
        shape,
        config={**absent, "head_dim": None, "tie_word_embeddings": None},
    )
    config = read_model_directory(directory).config
    assert (config.num_kv_heads, config.head_dim) == (4, 6)
    assert (config.rms_norm_eps, config.ropes[0].theta) == (1e-6, 10_000.0)
    assert (config.max_positions, config.tie_word_embeddings) == (2048, False)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 500.0},
        {
            "rope_theta": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        },
        {"rope_theta": 500, "rope_parameters": {"rope_theta": 500.0}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "default"}},
    ],
    ids=["top", "inside", "both", "scaled-by-nothing"],
)
def test_rope_theta_is_read_wherever_it_is(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    directory = write_llama_directory(tmp_path, config=fields)
    assert read_model_directory(directory).config.ropes[0].theta == 500.0


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, 3, (3,)),
        (None, [3, 4, 3], (3, 4)),
        (5, 3, (5,)),
        ([6, 7], 3, (6, 7)),
        (None, None, ()),
    ],
)
def test_the_generation_config_wins_for_the_end(
    directory: Path, generation: Any, config: Any, expected: tuple[int, ...]
) -> None:
    edit_json(directory / "config.json", eos_token_id=config)
    edit_json(directory / "generation_config.json", eos_token_id=generation)
    assert read_model_directory(directory).eos_token_ids == expected


def test_the_template_file_wins_over_the_tokenizer_config(directory: Path) -> None:
    edit_json(directory / "tokenizer_config.json", chat_template="from the config")
    assert read_model_directory(directory).prompt_template == "from the config"
    (directory / "chat_template.jinja").write_text("from the file")
    assert read_model_directory(directory).prompt_template == "from the file"


def test_of_several_templates_the_default_is_taken(directory: Path) -> None:
    templates = [
        {"name": "tools", "template": "a"},
        {"name": "default", "template": "b"},
    ]
    edit_json(directory / "tokenizer_config.json", chat_template=templates)
    assert read_model_directory(directory).prompt_template == "b"


@pytest.mark.parametrize("num_shards", [2, 3])
def test_shards_hold_the_same_model(
    directory: Path, tmp_path: Path, num_shards: int
) -> None:
    sharded = write_llama_directory(tmp_path / "sharded", num_shards=num_shards)
    assert not (sharded / WEIGHTS).exists()
    models = [
        open_engine(path, name="m", num_pages=2, num_threads=1).engine
        for path in (directory, sharded)
    ]
    assert run(models[0], Context([0]).feed(b"hello")) == run(
        models[1], Context([0]).feed(b"hello")
    )


def test_tied_weights_may_be_saved_under_either_name(directory: Path) -> None:
    def token() -> list[int]:
        engine = open_engine(directory, name="m", num_pages=2, num_threads=1).engine
        return run(engine, Context([0]).feed(b"hello"))

    expected = token()

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    def add_both(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = tensors["lm_head.weight"].clone()
        inverse = "model.layers.0.self_attn.rotary_emb.inv_freq"  # in old checkpoints
        tensors[inverse] = torch.ones(4)

    for change in (rename, add_both):
        edit_tensors(directory / WEIGHTS, change)
        assert token() == expected


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_of_any_float_type_are_converted(
    tmp_path: Path, stored: torch.dtype
) -> None:
    directory = write_llama_directory(tmp_path, dtype=stored)
    open_engine(directory, name="m", num_pages=1, dtype="float32", num_threads=1)
    open_engine(directory, name="m", num_pages=1, dtype="bfloat16", num_threads=1)


# --- what is refused: the message says what was expected, what came, and what to do


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path / "nowhere")
    assert "expected a model directory" in message
    assert "there is nothing" in message


def test_a_file_instead_of_a_directory_is_refused(directory: Path) -> None:
    assert "it is a file" in refusal(directory / "config.json")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_refused(directory: Path, name: str) -> None:
    (directory / name).unlink()
    message = refusal(directory)
    assert f"{name}: the file is missing" in message
    assert "complete model directory" in message


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "tokenizer_config.json",
    ],
)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"a": ', "cannot be parsed"),
        (b"[1]", "found a list"),
        (b"\xff\xfe", "readable UTF-8"),
        (b"", "cannot be parsed"),
        (b"[" * 100_000, "cannot be parsed"),
    ],
    ids=["truncated", "no-object", "no-utf8", "empty", "deep"],
)
def test_a_damaged_json_file_is_refused(
    directory: Path, name: str, content: bytes, expected: str
) -> None:
    (directory / name).write_bytes(content)
    message = refusal(directory)
    assert name in message
    assert expected in message


@pytest.mark.parametrize("architectures", [["GPT2LMHeadModel"], [3]])
def test_an_unknown_architecture_is_refused_with_those_that_are_known(
    directory: Path, architectures: object
) -> None:
    edit_json(directory / "config.json", architectures=architectures)
    message = refusal(directory)
    assert "is not supported; supported are: Gemma2ForCausalLM, " in message
    assert "LlamaForCausalLM, MistralForCausalLM" in message


@pytest.mark.parametrize("architectures", [None, [], "LlamaForCausalLM"])
def test_a_config_without_an_architecture_is_refused(
    directory: Path, architectures: object
) -> None:
    edit_json(directory / "config.json", architectures=architectures)
    message = refusal(directory)
    assert "architectures should be a list with one of Gemma2ForCausalLM, " in message
    assert repr(architectures) in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("sliding_window", 4096),
        ("partial_rotary_factor", 0.5),
        ("quantization_config", {"bits": 4}),
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("num_local_experts", 8),
        ("num_local_experts", True),
    ],
)
def test_a_field_that_changes_the_mathematics_is_refused(
    directory: Path, name: str, value: object
) -> None:
    edit_json(directory / "config.json", **{name: value})
    message = refusal(directory)
    assert f"{name} = {value!r} is not supported" in message
    assert "serve another model" in message


def test_a_field_with_a_neutral_value_is_accepted(directory: Path) -> None:
    neutral = {
        "attention_bias": False,
        "partial_rotary_factor": 1,
        "sliding_window": None,
    }
    edit_json(directory / "config.json", **neutral)
    read_model_directory(directory)


def test_partly_rotary_embeddings_inside_are_refused(directory: Path) -> None:
    edit_json(directory / "config.json", rope_parameters={"partial_rotary_factor": 0.5})
    assert "partial_rotary_factor = 0.5 is not supported" in refusal(directory)


def test_two_different_thetas_are_refused(directory: Path) -> None:
    edit_json(directory / "config.json", rope_parameters={"rope_theta": 7.0})
    assert "rope_theta should be the same wherever it is given" in refusal(directory)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("hidden_size", None, "hidden_size is missing, expected an integer >= 1"),
        ("hidden_size", "32", "an integer >= 1, but it is '32'"),
        ("num_hidden_layers", 0, "an integer >= 1, but it is 0"),
        ("num_hidden_layers", True, "an integer >= 1, but it is True"),
        ("num_key_value_heads", 4, "a divisor of num_attention_heads (6)"),
        ("head_dim", 7, "head_dim should be even"),
        ("rms_norm_eps", "small", "a number > 0, but it is 'small'"),
        ("rms_norm_eps", -1.0, "a number > 0, but it is -1.0"),
        ("rope_theta", True, "a number > 0, but it is True"),
        ("tie_word_embeddings", "yes", "true or false, but it is 'yes'"),
        ("rope_scaling", 3, "null or an object, but it is 3"),
        ("torch_dtype", 3, "the name of a dtype, but it is 3"),
        ("eos_token_id", "end", "eos_token_id should be a token id below 258"),
        ("eos_token_id", [258], "eos_token_id should be a token id below 258"),
        ("eos_token_id", True, "eos_token_id should be a token id below 258"),
    ],
)
def test_an_impossible_field_is_refused(
    directory: Path, name: str, value: object, expected: str
) -> None:
    edit_json(directory / "config.json", **{name: value})
    assert expected in refusal(directory)


def test_a_head_dim_that_cannot_be_derived_is_refused(directory: Path) -> None:
    edit_json(directory / "config.json", head_dim=None, hidden_size=25)
    assert "a multiple of num_attention_heads (6)" in refusal(directory)


@pytest.mark.parametrize(
    "template", [3, [], [{"name": "tools", "template": "a"}], ["default"]]
)
def test_an_unusable_chat_template_is_refused(
    directory: Path, template: object
) -> None:
    edit_json(directory / "tokenizer_config.json", chat_template=template)
    message = refusal(directory)
    assert "chat_template should be a string, or a list with an entry named" in message


def test_missing_weights_are_refused(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "pytorch_model.bin").touch()
    message = refusal(directory)
    assert f"expected {WEIGHTS} or {INDEX}, but found neither" in message


@pytest.mark.parametrize("keep", [0, 4, 200, 5000, -1])
def test_truncated_weights_are_refused(directory: Path, keep: int) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(content[:keep])
    message = refusal(directory)
    assert f"{WEIGHTS}: expected a complete safetensors file" in message
    assert "download it again" in message


def test_corrupt_weights_are_refused(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    (directory / WEIGHTS).write_bytes(b"\xff" * 64 + content[64:])
    assert "expected a complete safetensors file" in refusal(directory)


def test_a_missing_tensor_is_refused(directory: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_tensors(directory / WEIGHTS, lambda tensors: tensors.pop(name))
    assert f"the tensor {name} [40, 24] is missing" in refusal(directory)


def test_an_untied_model_needs_its_head(directory: Path) -> None:
    edit_json(directory / "config.json", tie_word_embeddings=False)
    assert "the tensor lm_head.weight [258, 24] is missing" in refusal(directory)


def test_an_unexpected_shape_is_refused(directory: Path) -> None:
    edit_json(directory / "config.json", intermediate_size=44)
    message = refusal(directory)
    assert "gate_proj.weight should have the shape [44, 24]" in message
    assert "but it has [40, 24]" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_an_unknown_dtype_is_refused(directory: Path, dtype: torch.dtype) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].to(dtype)

    edit_tensors(directory / WEIGHTS, change)
    message = refusal(directory)
    assert re.search(
        r"model.norm.weight has the dtype \w+, but only F32, F16, BF16", message
    )


def test_a_superfluous_tensor_is_refused(directory: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(
        directory / WEIGHTS, lambda tensors: tensors.update({name: torch.ones(48)})
    )
    message = refusal(directory)
    assert f"tensors that this architecture does not use ({name})" in message


def test_a_model_with_fewer_layers_than_weights_is_refused(directory: Path) -> None:
    edit_json(directory / "config.json", num_hidden_layers=1)
    assert "model.layers.1.input_layernorm.weight" in refusal(directory)
    assert "and 6 more" in refusal(directory)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    directory = write_llama_directory(tmp_path, num_shards=2)
    (directory / "model-00002-of-00002.safetensors").unlink()
    message = refusal(directory)
    assert "model-00002-of-00002.safetensors: the weight file is missing" in message


def test_a_shard_without_a_tensor_of_the_index_is_refused(tmp_path: Path) -> None:
    directory = write_llama_directory(tmp_path, num_shards=2)
    name = "model.norm.weight"
    shard = json.loads((directory / INDEX).read_text())["weight_map"][name]
    edit_tensors(directory / shard, lambda tensors: tensors.pop(name))
    message = refusal(directory)
    assert f"{shard}: the tensor {name} is missing, though {INDEX} says" in message


@pytest.mark.parametrize(
    "file_name", ["../model.safetensors", "/etc/passwd", "", 3, "a\0b"]
)
def test_an_index_that_leads_elsewhere_is_refused(
    tmp_path: Path, file_name: object
) -> None:
    directory = write_llama_directory(tmp_path, num_shards=2)
    edit_json(directory / INDEX, weight_map={"model.norm.weight": file_name})
    assert "weight_map should name files of this directory" in refusal(directory)


@pytest.mark.parametrize("weight_map", [None, [], "x"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    directory = write_llama_directory(tmp_path, num_shards=2)
    edit_json(directory / INDEX, weight_map=weight_map)
    assert "weight_map should be an object" in refusal(directory)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path) -> None:
    directory = write_llama_directory(
        tmp_path, LlamaShape(vocab_size=250), config={"eos_token_id": None}
    )
    message = refusal(directory)
    assert "the tokenizer has ids up to 257" in message
    assert "vocab_size is 250" in message


def test_a_tokenizer_of_another_kind_is_refused(directory: Path) -> None:
    (directory / "tokenizer.json").write_text(
        '{"version": "1.0", "model": {"type": "?"}}'
    )
    assert "expected a tokenizer of the tokenizers library" in refusal(directory)


def test_a_tokenizer_with_an_unknown_decoder_is_refused(directory: Path) -> None:
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    edit_json(directory / "tokenizer.json", decoder=decoder)
    with pytest.raises(
        ModelDirectoryError, match="decoder 'WordPiece' is not supported"
    ):
        open_engine(directory, name="m", num_pages=1, num_threads=1)
