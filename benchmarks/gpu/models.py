"""Engines with random weights of well-known shapes, made where they run: no files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from pie_trio.engine_api import ModelInfo
from pie_trio.inference.engine import TorchEngine
from pie_trio.inference.gpu.choosing import choose_gpu, open_gpu_step
from pie_trio.inference.kernels.choosing import choose_kernels
from pie_trio.inference.kernels.preparing import Preparation
from pie_trio.inference.kv_cache import allocate_embeds, kv_bytes_per_page
from pie_trio.inference.models.loading import load_decoder
from pie_trio.inference.models.reading import read_decoder_config
from pie_trio.inference.processors import ProcessorTable
from pie_trio.inference.step import compute

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from pie_trio.inference.gpu.choosing import DeviceName
    from pie_trio.inference.models.config import DecoderConfig
    from pie_trio.inference.weights import Checkpoint

TRAITS = ("adapters", "allocate", "forward", "input-text", "output-text", "tokenize")
DEVIATION = 0.02  # of the weights, as new Llamas have

_SCALING = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _llama(
    hidden: int, layers: int, heads: int, kv_heads: int, mlp: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": mlp,
        "vocab_size": 128_256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "hidden_act": "silu",
        "max_position_embeddings": 131_072,
        "torch_dtype": "bfloat16",
        **more,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "tiny-64": _llama(128, 2, 4, 2, 256, head_dim=64, vocab_size=512, tie_word_embeddings=True),
    "tiny-128": _llama(256, 2, 6, 2, 384, head_dim=128, vocab_size=512, tie_word_embeddings=False),
    "llama-3.2-1b": _llama(
        2048, 16, 32, 8, 8192, head_dim=64, tie_word_embeddings=True,
        rope_scaling={**_SCALING, "factor": 32.0},
    ),
    "llama-3.2-3b": _llama(
        3072, 28, 24, 8, 8192, head_dim=128, tie_word_embeddings=True,
        rope_scaling={**_SCALING, "factor": 32.0},
    ),
    "llama-3.1-8b": _llama(
        4096, 32, 32, 8, 14_336, head_dim=128, tie_word_embeddings=False,
        rope_scaling={**_SCALING, "factor": 8.0},
    ),
}  # fmt: skip


class RandomCheckpoint:
    """As a checkpoint of the right shapes; the same seed gives the same weights on a device."""

    def __init__(self, device: torch.device, seed: int = 0) -> None:
        self._device = device
        self._generator = torch.Generator(device).manual_seed(seed)

    def __contains__(self, name: str) -> bool:
        return True

    def take(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        *,
        rows: Sequence[slice] | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        """Return weights: norms near one, everything else near zero; always whole ones."""
        assert rows is None, "one rank has all rows"
        assert columns is None, "and all columns"
        weights = torch.empty(shape, dtype=dtype, device=self._device)
        mean = 1.0 if "norm" in name else 0.0
        return weights.normal_(mean, DEVIATION, generator=self._generator)

    def check_all_taken(self, *, ignore: Callable[[str], bool]) -> None:
        """There is nothing else."""


def read_shape(name: str) -> DecoderConfig:
    return read_decoder_config(SHAPES[name], Path(f"{name}/config.json"))


def open_random(
    name: str,
    *,
    device: DeviceName,
    dtype: torch.dtype,
    num_pages: int,
    page_size: int = 16,
    weights: RandomCheckpoint | None = None,
    kernels: str = "auto",
) -> TorchEngine:
    """Return an engine of a shape; ``weights`` may be a device's own, to compare two engines."""
    config = read_shape(name)
    chosen = choose_gpu(device, config, dtype)
    is_gpu = chosen is not None
    used = chosen or choose_kernels(cast("Any", kernels), head_dim=config.head_dim)
    preparation = Preparation(used, is_packed=not is_gpu)
    checkpoint = weights or RandomCheckpoint(used.device)
    model = load_decoder(config, cast("Checkpoint", checkpoint), dtype, preparation)
    kv_cache = used.allocate_kv_cache(
        config, num_pages=num_pages, page_size=page_size, dtype=dtype
    )
    info = ModelInfo(
        name=name,
        architecture=config.architecture,
        traits=TRAITS,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        bos_token_id=None,
        eos_token_ids=(),
        prompt_template="",
        page_bytes=kv_bytes_per_page(config, page_size=page_size, dtype=dtype),
        hidden_size=config.hidden_size,
        num_embeds=16,
        num_pages=num_pages,
        page_size=page_size,
    )
    return TorchEngine(
        info,
        model,
        kv_cache,
        preparation.place(allocate_embeds(config, num_embeds=16, dtype=dtype)),
        processors=ProcessorTable(config.vocab_size),
        # Small shapes on a busy machine are faster with one.
        num_threads=None if is_gpu else 1,
        compute=open_gpu_step(model, kv_cache) or compute,
    )
