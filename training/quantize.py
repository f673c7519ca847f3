"""The model with linear layers in 8 bits, as ``pie --quantize int8`` computes it, to evaluate that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from pie_trio.inference.kernels.choosing import choose_kernels
from pie_trio.inference.kernels.linears import make_int8
from pie_trio.inference.models.ops import Linear as PlainLinear
from training.model import Linear, Llama

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.kernels.protocol import Kernels


class Int8Llama(Llama):
    """A Llama whose linear layers, its head among them, are those of an engine in 8 bits.

    It computes what the engine does in float32: between the layers, nothing is rounded.
    """

    def __init__(self, model: Llama) -> None:
        """Round the weights of a model, which stays as it is.

        Raises:
            ConfigError: This torch cannot compute in 8 bits on this machine.
        """
        super().__init__(model.config)
        self.load_state_dict(model.state_dict())
        kernels = choose_kernels("auto", head_dim=model.config.head_dim)
        for part in list(self.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, Linear):
                    setattr(part, name, _Rounded(child.weight, kernels))
        self.head = _Rounded(self.embed_tokens.weight, kernels)
        self.eval().requires_grad_(requires_grad=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits of the rows of ``hidden``."""
        logits: Tensor = self.head(hidden)
        return logits


class _Rounded(nn.Module):
    def __init__(self, weight: Tensor, kernels: Kernels) -> None:
        super().__init__()
        self._linear = make_int8(PlainLinear(weight.detach()), kernels)

    def forward(self, inputs: Tensor) -> Tensor:
        rows = self._linear(inputs.flatten(0, -2).contiguous())
        return rows.view(*inputs.shape[:-1], -1)
