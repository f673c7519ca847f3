"""Write Llamas with random weights, for benchmarks: what they say is nonsense, what they cost is not.

    python -m benchmarks.make_models DIR --tokenizer DIR

writes DIR/rand-60m and DIR/rand-500m, with the tokenizer of another model. So that figures of
different tokenizers compare, it is shortened to 32,000 tokens: the later merges of a byte-level
BPE are left out.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from benchmarks.harness import make_parser

VOCAB_SIZE = 32_000
HEAD_DIM = 64
DEVIATION = 0.02  # of the weights, as new Llamas have


@dataclass(frozen=True)
class Shape:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int


SHAPES = {
    "rand-60m": Shape(512, 8, 8, 4, 1536),
    "rand-500m": Shape(1024, 24, 16, 8, 2816),
}


def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="folder to write the models into")
    parser.add_argument("--tokenizer", type=Path, required=True, help="model directory")
    parser.add_argument("--only", choices=SHAPES, nargs="+", default=list(SHAPES))
    options = parser.parse_args()
    for seed, (name, shape) in enumerate(SHAPES.items()):
        if name in options.only:
            num_weights = write_model(
                options.directory / name, shape, options.tokenizer, seed=seed
            )
            print(f"{options.directory / name}: {num_weights / 1e6:.1f}M parameters")


def write_model(path: Path, shape: Shape, tokenizer: Path, *, seed: int) -> int:
    """Write a model directory and return the number of its parameters."""
    path.mkdir(parents=True, exist_ok=True)
    text = json.loads((tokenizer / "tokenizer.json").read_text())
    shorten(text, VOCAB_SIZE)
    # Read by the library once more, which checks it.
    Tokenizer.from_str(json.dumps(text)).save(str(path / "tokenizer.json"))
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    settings.pop("added_tokens_decoder", None)  # with the ids of before
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    if (tokenizer / "chat_template.jinja").exists():
        shutil.copy(tokenizer / "chat_template.jinja", path)
    ends = (settings.get("eos_token"), "<|endoftext|>")
    ids = [t["id"] for t in text["added_tokens"] if t["content"] in ends]
    fields = {**config_fields(shape), "eos_token_id": ids}
    (path / "config.json").write_text(json.dumps(fields, indent=2))
    tensors = random_tensors(shape, seed=seed)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() for tensor in tensors.values())


def config_fields(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def random_tensors(shape: Shape, *, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def linear(rows: int, columns: int) -> torch.Tensor:
        weight = torch.randn(rows, columns, generator=generator)
        return weight.mul_(DEVIATION).to(torch.bfloat16)

    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    query, key = shape.num_heads * HEAD_DIM, shape.num_kv_heads * HEAD_DIM
    tensors = {"model.embed_tokens.weight": linear(VOCAB_SIZE, hidden)}
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        tensors |= {
            f"{prefix}.self_attn.q_proj.weight": linear(query, hidden),
            f"{prefix}.self_attn.k_proj.weight": linear(key, hidden),
            f"{prefix}.self_attn.v_proj.weight": linear(key, hidden),
            f"{prefix}.self_attn.o_proj.weight": linear(hidden, query),
            f"{prefix}.mlp.gate_proj.weight": linear(intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": linear(intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": linear(hidden, intermediate),
        }
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(
                hidden, dtype=torch.bfloat16
            )
    tensors["model.norm.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    return tensors


def shorten(text: dict[str, Any], size: int) -> None:
    """Drop the last tokens of a BPE tokenizer, in place, and give the added ones the last ids."""
    vocab, added = text["model"].get("vocab", {}), text["added_tokens"]
    contents = {token["content"] for token in added}
    if len(vocab.keys() | contents) <= size:
        return
    processor = text.get("post_processor") or {"type": "ByteLevel"}
    if text["model"]["type"] != "BPE" or processor["type"] != "ByteLevel":
        raise SystemExit(
            f"only a byte-level BPE can be shortened to {size:,} tokens: give the "
            "tokenizer of a GPT-2 or a Qwen, for example"
        )
    room = size - len(added)
    plain = sorted((t for t in vocab if t not in contents), key=lambda t: int(vocab[t]))
    kept = {token: index for index, token in enumerate(plain[:room])}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in text["model"]["merges"]]
    text["model"]["vocab"] = kept
    text["model"]["merges"] = [
        [a, b] for a, b in pairs if a in kept and b in kept and a + b in kept
    ]
    for index, token in enumerate(added):
        token["id"] = room + index


if __name__ == "__main__":
    main()
