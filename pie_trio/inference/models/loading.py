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
from pie_trio.inference.parallel.split import WHOLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pie_trio.inference.kernels.preparing import Preparation
    from pie_trio.inference.models.config import DecoderConfig, LayerConfig
    from pie_trio.inference.parallel.group import Group
    from pie_trio.inference.parallel.split import Split
    from pie_trio.inference.weights import Checkpoint

__all__ = ["load_decoder"]


def load_decoder(
    config: DecoderConfig,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    preparation: Preparation = AS_LOADED,
    group: Group | None = None,
) -> Decoder:
    """Read the weights of a model, and prepare them layer by layer.

    Args:
        config: Of the whole model.
        checkpoint: Its files.
        dtype: To compute in.
        preparation: How weights are kept.
        group: The ranks; only what is this one's is read. None for all of it.

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
    split = WHOLE if group is None else group.split
    own_tokens = split.vocabulary(config.vocab_size)
    head = embedding[own_tokens]  # on a device both are there once
    if not is_tied:
        rows = None if group is None else [own_tokens]
        head = place(checkpoint.take(head_name, vocabulary, dtype, rows=rows))
    layers = tuple(
        preparation.layer(
            _LayerLoader(
                config, checkpoint, dtype, f"model.layers.{index}", split
            ).load(layer)
        )
        for index, layer in enumerate(config.layers)
    )
    final_norm = _norm(config, checkpoint, dtype, "model.norm", config.hidden_size)
    checkpoint.check_all_taken(ignore=lambda name: _is_redundant(name, config))
    return Decoder(
        config=split.config(config),
        embedding=embedding,
        embedding_scale=torch.tensor(config.embedding_scale).to(dtype).item(),
        layers=layers,
        final_norm=preparation.kernels.norm_weight(final_norm),
        head=preparation.linear(Linear(head)),
        inverse_frequencies=tuple(
            place(inverse_frequencies(rope)) for rope in config.ropes
        ),
        kernels=preparation.kernels,
        group=group,
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
    """Reads the tensors of one layer, whose names begin with ``prefix``.

    Of what the ranks share, it reads one rank's part: of the first linear layer of attention or
    MLP some outputs, of the second the inputs that follow from them. So what both give
    together is the sum over the ranks.
    """

    config: DecoderConfig
    checkpoint: Checkpoint
    dtype: torch.dtype
    prefix: str
    split: Split

    def load(self, layer: LayerConfig) -> DecoderLayer:
        config = self.config
        hidden = config.hidden_size
        query, key = (
            count * config.head_dim for count in (config.num_heads, config.num_kv_heads)
        )
        projections: dict[str, tuple[int, ...]]
        projections = {"q_proj": (query,), "k_proj": (key,), "v_proj": (key,)}
        if config.is_packed:
            projections = {"qkv_proj": (query, key, key)}
        # With norms of results, the one before the MLP has a name of its own.
        post = config.has_post_norms
        mlp_norm = "pre_feedforward_layernorm" if post else "post_attention_layernorm"
        return DecoderLayer(
            attention_norm=self._norm("input_layernorm"),
            qkv=self._packed("self_attn", projections, hidden, config.has_qkv_bias),
            head_norm=self._head_norm() if config.has_qk_norm else None,
            rope=layer.rope,
            attention_output=self._second(
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
        own, dim = self.split.config(self.config), self.config.head_dim
        query = self._norm("self_attn.q_norm", dim).expand(own.num_heads, dim)
        key = self._norm("self_attn.k_norm", dim).expand(own.num_kv_heads, dim)
        return torch.cat((query, key))

    def _mlp(self) -> GatedMlp:
        size, has_bias = self.config.intermediate_size, self.config.has_mlp_bias
        parts: dict[str, tuple[int, ...]]
        parts = {"gate_proj": (size,), "up_proj": (size,)}
        if self.config.is_packed:
            parts = {"gate_up_proj": (size, size)}
        return self._gated("mlp", parts, "mlp.down_proj", size, has_bias)

    def _experts(self) -> SparseMlp:
        experts = self.config.experts
        assert experts is not None, "a family with sparse layers reads their experts"
        size = experts.intermediate_size

        def expert(index: int) -> GatedMlp:
            name = f"{experts.block}.experts.{index}"
            parts: dict[str, tuple[int, ...]]
            parts = {experts.gate: (size,), experts.up: (size,)}
            return self._gated(name, parts, f"{name}.{experts.down}", size, False)

        return SparseMlp(
            router=Linear(
                self._take(
                    f"{experts.block}.gate.weight",
                    (experts.count, self.config.hidden_size),
                )
            ),
            experts=tuple(map(expert, range(experts.count))),
            per_token=experts.per_token,
            is_normalized=experts.is_normalized,
        )

    def _gated(
        self,
        block: str,
        parts: dict[str, tuple[int, ...]],
        down: str,
        size: int,
        has_bias: bool,
    ) -> GatedMlp:
        hidden = self.config.hidden_size
        return GatedMlp(
            gate_up=self._packed(block, parts, hidden, has_bias),
            down=self._second(down, hidden, size, has_bias),
            activation=self.config.activation,
            kernels=AS_LOADED.kernels,
        )

    def _packed(
        self,
        block: str,
        parts: dict[str, tuple[int, ...]],
        num_inputs: int,
        has_bias: bool,
    ) -> Linear:
        """Return several linear layers of the same inputs as one, in their order.

        Args:
            block: Where they are.
            parts: Their names, with their outputs: one number for each block that ranks share.
            num_inputs: Of all of them.
            has_bias: Whether they have biases.
        """
        linears = [
            self._first(f"{block}.{name}", blocks, num_inputs, has_bias)
            for name, blocks in parts.items()
        ]
        if len(linears) == 1:
            return linears[0]
        biases = [linear.bias for linear in linears if linear.bias is not None]
        weight = torch.cat([linear.weight for linear in linears])
        return Linear(weight, torch.cat(biases) if has_bias else None)

    def _first(
        self, name: str, blocks: tuple[int, ...], num_inputs: int, has_bias: bool
    ) -> Linear:
        """Return a linear layer with the outputs of this rank."""
        num_outputs = sum(blocks)
        rows = None if self.split.size == 1 else self.split.rows(blocks)
        shape = (num_outputs, num_inputs)
        weight = self._take(f"{name}.weight", shape, rows=rows)
        if not has_bias:
            return Linear(weight)
        return Linear(weight, self._take(f"{name}.bias", (num_outputs,), rows=rows))

    def _second(
        self, name: str, num_outputs: int, num_inputs: int, has_bias: bool
    ) -> Linear:
        """Return a linear layer with the inputs of this rank, of which rank 0 adds the bias."""
        columns = None if self.split.size == 1 else self.split.part(num_inputs)
        shape = (num_outputs, num_inputs)
        weight = self._take(f"{name}.weight", shape, columns=columns)
        if not has_bias:
            return Linear(weight)
        bias = self._take(f"{name}.bias", (num_outputs,))
        return Linear(weight, bias if self.split.rank == 0 else None)

    def _take(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        rows: Sequence[slice] | None = None,
        columns: slice | None = None,
    ) -> Tensor:
        return self.checkpoint.take(
            f"{self.prefix}.{name}", shape, self.dtype, rows=rows, columns=columns
        )
