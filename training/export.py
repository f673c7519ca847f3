"""Write a checkpoint in the Hugging Face layout, and read either back."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from training.corpus.documents import END_OF_TEXT, IM_END, IM_START
from training.model import Llama, ModelConfig
from training.tokenizer import PAD, TOOL_TOKENS
from training.train import load_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

_CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "rms_norm_eps",
}
# Mirrors training.corpus: tools are declared after the system text, one a line.
CHAT_TEMPLATE = """\
{%- if tools %}
    {%- if messages[0].role == 'system' %}
        {%- set system = messages[0].content %}
    {%- else %}
        {%- set system = 'You are Pie, a small helpful assistant.' %}
    {%- endif %}
    {{- '<|im_start|>system\\n' + system + '\\nCall tools as JSON when they help.' }}
    {%- for tool in tools %}
        {%- set function = tool.function if tool.function is defined else tool %}
        {{- '\\n- ' + function.name + '(' }}
        {%- for name, schema in ((function.parameters or {}).properties or {}).items() %}
            {%- set type = schema.type if schema.type is string else 'any' %}
            {{- name + ': ' + type + (', ' if not loop.last else '') }}
        {%- endfor %}
        {{- '): ' + function.description }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content %}
        {{- message.content }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {%- set function = call.function if call.function is defined else call %}
        {%- if message.content or not loop.first %}
            {{- '\\n' }}
        {%- endif %}
        {{- '<tool_call>\\n{"name": "' + function.name + '", "arguments": ' }}
        {%- if function.arguments is string %}
            {{- function.arguments }}
        {%- else %}
            {{- function.arguments | tojson }}
        {%- endif %}
        {{- '}\\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""


def hugging_face_config(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, object]:
    """Return the content of ``config.json``."""
    shape = {name: getattr(config, ours) for ours, name in _CONFIG_NAMES.items()}
    return shape | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(IM_END),
        "pad_token_id": tokenizer.token_to_id(PAD),
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def export(checkpoint: Path, tokenizer_path: Path, folder: Path) -> None:
    """Write weights in bf16, configuration, tokenizer and chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(checkpoint)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    weights: dict[str, Tensor] = state["model"]
    save_file(
        {f"model.{name}": tensor.bfloat16() for name, tensor in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = ModelConfig(**state["model_config"])
    _write_json(folder / "config.json", hugging_face_config(config, tokenizer))
    ends = [tokenizer.token_to_id(token) for token in (IM_END, END_OF_TEXT)]
    pad = tokenizer.token_to_id(PAD)
    generation = {"do_sample": False, "eos_token_id": ends, "pad_token_id": pad}
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(tokenizer, config))


def _tokenizer_config(tokenizer: Tokenizer, config: ModelConfig) -> dict[str, object]:
    decoder = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": token not in TOOL_TOKENS,
        }
        for token in (END_OF_TEXT, IM_START, IM_END, PAD, *TOOL_TOKENS)
    }
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_positions,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": PAD,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": decoder,
        "chat_template": CHAT_TEMPLATE,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def load_model(path: Path) -> Llama:
    """Return the fp32 model of an exported folder, or of a checkpoint file."""
    if path.is_dir():
        saved = json.loads((path / "config.json").read_text())
        config = ModelConfig(**{k: saved[v] for k, v in _CONFIG_NAMES.items()})
        weights = load_file(path / "model.safetensors")
        weights = {k.removeprefix("model."): v.float() for k, v in weights.items()}
    else:
        state = load_checkpoint(path)
        config = ModelConfig(**state["model_config"])
        # What ships is bf16, so that is what a checkpoint is measured in.
        weights = {k: v.bfloat16().float() for k, v in state["model"].items()}
    model = Llama(config)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(requires_grad=False)


def main() -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    export(args.checkpoint, args.tokenizer, args.output)
    size = (args.output / "model.safetensors").stat().st_size
    num_params = sum(p.numel() for p in load_model(args.output).parameters())
    logger.info("%d parameters, %d bytes, in %s", num_params, size, args.output)


if __name__ == "__main__":
    main()
