"""Rank 0: it is the engine that others see. It checks batches, samples, and has the processors."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np
import torch

from pie_trio.errors import PieError
from pie_trio.inference.adapters.directory import hash_directory
from pie_trio.inference.backends.torch_cpu import to_tensor
from pie_trio.inference.engine import TorchEngine
from pie_trio.inference.parallel.group import Group
from pie_trio.inference.parallel.split import Split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch, ModelInfo, PageCopy
    from pie_trio.inference.kernels.protocol import PagedCache
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.outputs import Computed
    from pie_trio.inference.processors import ProcessorTable
    from pie_trio.inference.step import Compute, StepInput

__all__ = ["Followers", "Leader"]


class Followers(Protocol):
    """The other ranks, each of which does what it is told in the same order."""

    def begin_step(self, batch: Batch) -> None:
        """Let all of them run a step; they return nothing."""
        ...

    def begin_read(
        self, page_ids: NDArray[np.int32]
    ) -> Callable[[], list[NDArray[np.uint8]]]:
        """Let all of them read pages; return what waits for ``[n, own page bytes]`` of each."""
        ...

    def write_pages(
        self, page_ids: NDArray[np.int32], parts: Sequence[NDArray[np.uint8]]
    ) -> None:
        """Let each of them write its part of pages."""
        ...

    def load_adapter(self, name: str, directory: str) -> None:
        """Let all of them load an adapter, beside their steps, and wait for it.

        Raises:
            AdapterError: One cannot.
        """
        ...

    def drop_adapter(self, name: str) -> None:
        """Let those that have an adapter forget it, and wait for it, but not for one that loads."""
        ...

    def give_up(self, reason: str) -> NoReturn:
        """End all ranks: they do no longer do the same."""
        ...

    def close(self) -> None:
        """End them. Idempotent."""
        ...


class Leader:
    """Rank 0, as a :class:`~.part.Part`.

    Attributes:
        group: All ranks.
        followers: The others.
    """

    def __init__(self, size: int, followers: Followers) -> None:
        """Lead ``size`` ranks."""
        self.group, self.followers = Group(Split(0, size)), followers

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
        """See :class:`~.part.Part`."""
        size = self.group.split.size
        return _LeadingEngine(
            replace(info, page_bytes=size * info.page_bytes),
            model,
            _SharedCache(kv_cache, size, self.followers),
            embeds,
            processors=processors,
            num_threads=num_threads,
            compute=_LeadingCompute(compute, kv_cache, self.followers),
            followers=self.followers,
        )


class _LeadingEngine(TorchEngine):
    def __init__(
        self,
        info: ModelInfo,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        *,
        processors: ProcessorTable,
        num_threads: int | None,
        compute: Compute,
        followers: Followers,
    ) -> None:
        super().__init__(
            *(info, model, kv_cache, embeds),
            processors=processors,
            num_threads=num_threads,
            compute=compute,
        )
        self._followers, self._loading = followers, threading.Lock()

    def load_adapter(self, name: str, directory: Path | str) -> None:
        with self._loading:
            self._adapters.check(name, hash_directory(directory))
            try:
                # They first: what this rank has may be in its next step.
                self._followers.load_adapter(name, str(directory))
                super().load_adapter(name, directory)
            except BaseException:
                with suppress(PieError):
                    self._followers.drop_adapter(name)
                raise

    def drop_adapter(self, name: str) -> None:
        super().drop_adapter(name)
        self._followers.drop_adapter(name)

    def close(self) -> None:
        self._followers.close()
        super().close()


class _LeadingCompute:
    """A step of all ranks. What is refused before it is refused by rank 0 alone."""

    def __init__(
        self, compute: Compute, kv_cache: PagedCache, followers: Followers
    ) -> None:
        self._compute, self._kv_cache, self._followers = compute, kv_cache, followers

    def __call__(
        self,
        step: StepInput,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        /,
    ) -> Computed:
        self._followers.begin_step(step.batch)
        try:
            return self._compute(step, model, self._kv_cache, embeds)
        except BaseException as error:  # noqa: BLE001 -- give_up raises, or ends the process
            # Others may wait for this rank in the middle of the step, and there is no way back.
            self._followers.give_up(f"rank 0 failed in a step: {error}")


class _SharedCache:
    """The cache of rank 0, of which each page goes on in those of the others.

    A page that is read is its part on rank 0, then that on rank 1, and so on.
    """

    def __init__(self, own: PagedCache, size: int, followers: Followers) -> None:
        self._own, self._size, self._followers = own, size, followers

    @property
    def page_size(self) -> int:
        return self._own.page_size

    def copy(self, copies: Sequence[PageCopy]) -> None:
        self._own.copy(copies)  # each rank finds them in its batch

    def clear(self, slots: Tensor) -> None:
        self._own.clear(slots)

    def read(self, page_ids: Tensor) -> Tensor:
        wait = self._followers.begin_read(_page_ids(page_ids))
        try:
            own = self._own.read(page_ids).cpu()
        finally:
            others = wait()  # else they would be the answer to the next question
        return torch.cat([own, *map(to_tensor, others)], dim=1)

    def write(self, page_ids: Tensor, data: Tensor) -> None:
        own, *others = data.chunk(self._size, dim=1)
        parts = [part.contiguous().cpu().numpy() for part in others]
        self._followers.write_pages(_page_ids(page_ids), parts)
        self._own.write(page_ids, own.contiguous())


def _page_ids(page_ids: Tensor) -> NDArray[np.int32]:
    return page_ids.cpu().numpy().astype(np.int32)
