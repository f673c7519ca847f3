"""One rank's part in an engine, as :func:`~..engine.open_engine` needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.engine_api import ModelInfo
    from pie_trio.inference.engine import TorchEngine
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.parallel.group import Group
    from pie_trio.inference.processors import ProcessorTable
    from pie_trio.inference.step import Compute

__all__ = ["Part"]


class Part(Protocol):
    """A rank."""

    @property
    def group(self) -> Group:
        """The ranks; it need not be open before the first step."""
        ...

    def make_engine(
        self,
        info: ModelInfo,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        *,
        processors: ProcessorTable,
        num_threads: int | None,
        compute: Compute,
    ) -> TorchEngine:
        """Return the engine of this rank; arguments are those of :class:`TorchEngine`.

        ``info.page_bytes`` is what a page takes on this rank.
        """
        ...
