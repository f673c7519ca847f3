"""What fixes a decoder's mathematics, as plain data; no weights and no torch here.

:mod:`pie_trio.inference.models.reading` makes it from a ``config.json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.inference.models.rope_fields import Rope

__all__ = [
    "Activation",
    "AttentionConfig",
    "DecoderConfig",
    "ExpertsConfig",
    "LayerConfig",
]

Activation = Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """In what layers of one model may differ.

    Attributes:
        window: A token attends to so many slots, its own being the last; None for all.
        rope: Index of its rotary embedding; None for none.
        is_sparse: Whether experts stand in for the MLP.
    """

    window: int | None = None
    rope: int | None = 0
    is_sparse: bool = False


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """How attention weights come about; what a backend plans a batch with.

    Attributes:
        scale: Products of query and key are multiplied by it.
        softcap: Scores are bent to stay between it and its negative; None for not at all.
        windows: The different windows, None being no window.
        window_of_layer: For each layer an index into ``windows``.
    """

    scale: float
    softcap: float | None
    windows: tuple[int | None, ...]
    window_of_layer: tuple[int, ...]

    @classmethod
    def of_layers(
        cls, layers: Sequence[LayerConfig], *, scale: float, softcap: float | None
    ) -> AttentionConfig:
        """Collect the windows of all layers."""
        by_layer = [layer.window for layer in layers]
        windows = tuple(dict.fromkeys(by_layer))
        return cls(scale, softcap, windows, tuple(map(windows.index, by_layer)))


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """The MLPs of a sparse layer, of which a router chooses some for each token.

    Attributes:
        count: Experts of a layer.
        per_token: Those that a token goes through.
        intermediate_size: Of each.
        is_normalized: Whether the shares of the chosen ones add up to 1.
        block: Name of the block in the checkpoint.
        gate: Name of the gate's weight in an expert.
        up: As ``gate``.
        down: As ``gate``.
    """

    count: int
    per_token: int
    intermediate_size: int
    is_normalized: bool
    block: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The numbers and choices that fix a decoder's mathematics.

    Attributes:
        activation: Of the gate in an MLP.
        norm_offset: Added to the stored weights of norms.
        embedding_scale: What embeddings of tokens are multiplied by.
        ropes: The different rotary embeddings.
        logit_softcap: As the one of attention, of the logits.
        has_qk_norm: Whether the heads of queries and keys are normed before the rotation.
        has_post_norms: Whether what attention and MLP return is normed as well.
        has_qkv_bias: Whether the projections to query, key and value have biases.
        has_output_bias: Whether the projection after attention has one.
        has_mlp_bias: Whether the projections of the MLP have biases.
        is_packed: Whether the checkpoint holds query, key and value in one tensor, and gate
            and up in one.
        experts: Of the sparse layers; None where there are none.
        max_positions: Longest context that the model was made for; not enforced.
        stored_dtype: As the file names it, for example ``bfloat16``; None if it does not.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layers: tuple[LayerConfig, ...]
    attention: AttentionConfig
    ropes: tuple[Rope, ...]
    rms_norm_eps: float
    norm_offset: float
    activation: Activation
    embedding_scale: float
    logit_softcap: float | None
    has_qk_norm: bool
    has_post_norms: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    is_packed: bool
    experts: ExpertsConfig | None
    max_positions: int
    tie_word_embeddings: bool
    stored_dtype: str | None

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return len(self.layers)
