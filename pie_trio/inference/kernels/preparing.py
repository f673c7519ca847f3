"""Brings loaded weights into the form that is fastest, layer by layer while they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pie_trio.inference.kernels.linears import make_int8
from pie_trio.inference.kernels.reference import TorchKernels
from pie_trio.inference.models.mlp import GatedMlp, SparseMlp
from pie_trio.inference.models.ops import Linear

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels, LinearLayer
    from pie_trio.inference.models.decoder import DecoderLayer

__all__ = ["AS_LOADED", "Preparation"]


@dataclass(frozen=True, slots=True)
class Preparation:
    """How weights are kept.

    Attributes:
        kernels: Who computes with them.
        is_packed: Whether linear layers are laid out anew, as the CPU likes it best.
        is_int8: Whether they are rounded to 8 bits. Routers of experts never are: a slightly
            different number there chooses another expert.
    """

    kernels: Kernels
    is_packed: bool = True
    is_int8: bool = False

    def layer(self, layer: DecoderLayer) -> DecoderLayer:
        """Return a layer that was read with its weights prepared.

        Raises:
            ConfigError: 8 bits are not possible here.
        """
        return replace(
            layer,
            attention_norm=self.kernels.norm_weight(layer.attention_norm),
            qkv=self.linear(layer.qkv),
            head_norm=self._norm(layer.head_norm),
            attention_output=self.linear(layer.attention_output),
            attention_post_norm=self._norm(layer.attention_post_norm),
            mlp_norm=self.kernels.norm_weight(layer.mlp_norm),
            mlp=self._mlp(layer.mlp),
            mlp_post_norm=self._norm(layer.mlp_post_norm),
        )

    def linear(self, linear: LinearLayer) -> LinearLayer:
        """Return one linear layer prepared; one that is already stays as it is.

        Raises:
            ConfigError: 8 bits are not possible here.
        """
        if not isinstance(linear, Linear):
            return linear
        if self.is_int8:
            return make_int8(linear, self.kernels)
        is_packed = self.is_packed
        return self.kernels.pack_linear(linear) if is_packed else self._placed(linear)

    def _placed(self, linear: LinearLayer) -> LinearLayer:
        bias = None if linear.bias is None else self.place(linear.bias)
        return Linear(self.place(linear.weight), bias)

    def place(self, tensor: Tensor) -> Tensor:
        """Return a tensor where the kernels compute; one that is there already as it is."""
        return tensor.to(self.kernels.device)

    def _norm(self, weight: Tensor | None) -> Tensor | None:
        return None if weight is None else self.kernels.norm_weight(weight)

    def _mlp(self, mlp: GatedMlp | SparseMlp) -> GatedMlp | SparseMlp:
        if isinstance(mlp, SparseMlp):
            router = self._placed(mlp.router)
            experts = tuple(map(self._gated, mlp.experts))
            return replace(mlp, router=router, experts=experts)
        return self._gated(mlp)

    def _gated(self, mlp: GatedMlp) -> GatedMlp:
        return replace(
            mlp,
            kernels=self.kernels,
            gate_up=self.linear(mlp.gate_up),
            down=self.linear(mlp.down),
        )


AS_LOADED = Preparation(TorchKernels(), is_packed=False)
