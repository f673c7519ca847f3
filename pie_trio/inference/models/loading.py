"""From the tensors of a checkpoint to a decoder; a family's names and parts are declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from pie_trio.inference.kernels.preparing import AS_LOADED
from pie_trio.inference.models.decoder import Decoder, DecoderLayer
from pie_trio.inference.models.mlp import GatedMlp, SparseMlp
from pie_trio.inference.models.ops import Linear
from pie_trio.inference.models.rope import inverse_frequencies

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.preparing import Preparation
    from pie_trio.inference.models.config import DecoderConfig, LayerConfig
    from pie_trio.inference.weights import Checkpoint

__all__ = ["load_decoder"]


def load_decoder(
    config: DecoderConfig,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    preparation: Preparation = AS_LOADED,
) -> Decoder:
    """Read the weights of a model, and prepare them layer by layer.

    Raises:
        ModelDirectoryError: A tensor is missing, superfluous, or of the wrong shape or dtype.
        ConfigError: The weights cannot be kept in the way that ``preparation`` says.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    is_tied, head_name = config.tie_word_embeddings, "lm_head.weight"
    # Tied weights are stored once; under which name is up to who saved them.
    embedding_name = "model.embed_tokens.weight"
    if is_tied and embedding_name not in checkpoint and head_name in checkpoint:
        embedding_name = head_name
    place = preparation.place
    embedding = place(checkpoint.take(embedding_name, vocabulary, dtype))
    head = embedding  # on a device both are there once
    if not is_tied:
        head = place(checkpoint.take(head_name, vocabulary, dtype))
    layers = tuple(
        preparation.layer(
            _LayerLoader(config, checkpoint, dtype, f"model.layers.{index}").load(layer)
        )
        for index, layer in enumerate(config.layers)
    )
    final_norm = _norm(config, checkpoint, dtype, "model.norm", config.hidden_size)
    checkpoint.check_all_taken(ignore=lambda name: _is_redundant(name, config))
    return Decoder(
        config=config,
        embedding=embedding,
        embedding_scale=torch.tensor(config.embedding_scale).to(dtype).item(),
        layers=layers,
        final_norm=preparation.kernels.norm_weight(final_norm),
        head=preparation.linear(Linear(head)),
        inverse_frequencies=tuple(
            place(inverse_frequencies(rope)) for rope in config.ropes
        ),
        kernels=preparation.kernels,
    )


def _is_redundant(name: str, config: DecoderConfig) -> bool:
    """Say whether a checkpoint may hold this tensor though nothing reads it."""
    is_tied_copy = config.tie_word_embeddings and name == "lm_head.weight"
    return is_tied_copy or name.endswith(".rotary_emb.inv_freq")  # old checkpoints


def _norm(
    config: DecoderConfig,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    name: str,
    size: int,
) -> Tensor:
    if not config.norm_offset:
        return checkpoint.take(f"{name}.weight", (size,), dtype)
    # Stored around 0 and used around 1, where bfloat16 has steps of a hundredth.
    stored = checkpoint.take(f"{name}.weight", (size,), torch.float32)
    return stored.add_(config.norm_offset)


@dataclass(frozen=True, slots=True)
class _LayerLoader:
    """Reads the tensors of one layer, whose names begin with ``prefix``."""

    config: DecoderConfig
    checkpoint: Checkpoint
    dtype: torch.dtype
    prefix: str

    def load(self, layer: LayerConfig) -> DecoderLayer:
        config = self.config
        hidden = config.hidden_size
        query, key = (
            count * config.head_dim for count in (config.num_heads, config.num_kv_heads)
        )
        projections = {"q_proj": query, "k_proj": key, "v_proj": key}
        if config.is_packed:
            projections = {"qkv_proj": query + 2 * key}
        # With norms of results, the one before the MLP has a name of its own.
        post = config.has_post_norms
        mlp_norm = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
        return DecoderLayer(
            attention_norm=self._norm("input_layernorm"),
            qkv=self._packed("self_attn", projections, hidden, config.has_qkv_bias),
            head_norm=self._head_norm() if config.has_qk_norm else None,
            rope=layer.rope,
            attention_output=self._linear(
                "self_attn.o_proj", hidden, query, config.has_output_bias
            ),
            attention_post_norm=self._norm("post_attention_layernorm")
            if post
            else None,
            mlp_norm=self._norm(mlp_norm),
            mlp=self._experts() if layer.is_sparse else self._mlp(),
            mlp_post_norm=self._norm("post_feedforward_layernorm") if post else None,
        )

    def _norm(self, name: str, size: int | None = None) -> Tensor:
        name, size = f"{self.prefix}.{name}", size or self.config.hidden_size
        return _norm(self.config, self.checkpoint, self.dtype, name, size)

    def _head_norm(self) -> Tensor:
        """Return the norm of a query for each query head, then that of a key."""
        dim = self.config.head_dim
        query = self._norm("self_attn.q_norm", dim).expand(self.config.num_heads, dim)
        key = self._norm("self_attn.k_norm", dim).expand(self.config.num_kv_heads, dim)
        return torch.cat((query, key))

    def _mlp(self) -> GatedMlp:
        size, has_bias = self.config.intermediate_size, self.config.has_mlp_bias
        parts = {"gate_proj": size, "up_proj": size}
        if self.config.is_packed:
            parts = {"gate_up_proj": 2 * size}
        return self._gated("mlp", parts, "mlp.down_proj", size, has_bias)

    def _experts(self) -> SparseMlp:
        experts = self.config.experts
        assert experts is not None, "a family with sparse layers reads their experts"
        size = experts.intermediate_size

        def expert(index: int) -> GatedMlp:
            name = f"{experts.block}.experts.{index}"
            parts = {experts.gate: size, experts.up: size}
            return self._gated(name, parts, f"{name}.{experts.down}", size, False)

        return SparseMlp(
            router=self._linear(
                f"{experts.block}.gate", experts.count, self.config.hidden_size, False
            ),
            experts=tuple(map(expert, range(experts.count))),
            per_token=experts.per_token,
            is_normalized=experts.is_normalized,
        )

    def _gated(
        self, block: str, parts: dict[str, int], down: str, size: int, has_bias: bool
    ) -> GatedMlp:
        hidden = self.config.hidden_size
        return GatedMlp(
            gate_up=self._packed(block, parts, hidden, has_bias),
            down=self._linear(down, hidden, size, has_bias),
            activation=self.config.activation,
            kernels=AS_LOADED.kernels,
        )

    def _packed(
        self, block: str, parts: dict[str, int], num_inputs: int, has_bias: bool
    ) -> Linear:
        """Return several linear layers of the same inputs as one, in their order."""
        linears = [
            self._linear(f"{block}.{name}", num_outputs, num_inputs, has_bias)
            for name, num_outputs in parts.items()
        ]
        if len(linears) == 1:
            return linears[0]
        biases = [linear.bias for linear in linears if linear.bias is not None]
        weight = torch.cat([linear.weight for linear in linears])
        return Linear(weight, torch.cat(biases) if has_bias else None)

    def _linear(
        self, name: str, num_outputs: int, num_inputs: int, has_bias: bool
    ) -> Linear:
        name, take = f"{self.prefix}.{name}", self.checkpoint.take
        weight = take(f"{name}.weight", (num_outputs, num_inputs), self.dtype)
        if not has_bias:
            return Linear(weight)
        return Linear(weight, take(f"{name}.bias", (num_outputs,), self.dtype))
