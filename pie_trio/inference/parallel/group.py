"""What the ranks of a model say to each other in the middle of a step: sums, and logits.

Every rank makes the same calls in the same order, as they follow from the batch alone.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 -- the name that everybody uses

if TYPE_CHECKING:
    from torch import Tensor

    from pie_trio.inference.parallel.split import Split

__all__ = ["Group", "connect"]

LOOPBACK = "lo"
"""Ranks are processes of one machine: they listen for nobody else."""


class Group:
    """The ranks of one model, as one of them sees them.

    Attributes:
        split: Which rank this is.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self._connection: Any = None  # torch has no one type for what it may be

    def open(self, connection: Any) -> None:
        """Take a process group of torch, over which all ranks are connected."""
        self._connection = connection

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum of all ranks' tensors, the same bits on each; may write over its own.

        Args:
            part: Of the same shape on all ranks.
        """
        part = part.contiguous()
        self._connection.allreduce([part]).wait()
        return part

    def gather(self, part: Tensor, length: int) -> Tensor:
        """Return all ranks' columns side by side on rank 0, and none on the others.

        Args:
            part: ``[num_rows, own]``, what :meth:`Split.vocabulary` gives this rank.
            length: Columns in all.

        Returns:
            ``[num_rows, length]``, or ``[num_rows, 0]``.
        """
        from torch.distributed import GatherOptions

        share = -(-length // self.split.size)
        part = F.pad(part, (0, share - part.shape[1])).contiguous()
        is_root = self.split.rank == 0
        parts = [torch.empty_like(part) for _ in range(self.split.size * is_root)]
        options = GatherOptions()
        options.rootRank = 0
        outputs = [parts] if is_root else []
        self._connection.gather(outputs, [part], options).wait()
        if not is_root:
            return part[:, :0]
        return torch.cat(parts, dim=1)[:, :length]


def connect(group: Group, store: int, device: torch.device, seconds: float) -> None:
    """Connect this process with those of the other ranks. Blocks until all are there.

    Args:
        group: To open.
        store: Number of a file that all of them hold open, and that is empty at the start. It
            needs no name, so that nobody else finds it and nothing is left of it.
        device: Where the tensors are: a GPU's go by NCCL, others by gloo.
        seconds: For the others to come, and for each exchange.

    Raises:
        RuntimeError: One does not come.
    """
    import torch.distributed

    dist: Any = torch.distributed  # which does not declare all that it has
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, LOOPBACK)
    is_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=dist.FileStore(f"/proc/self/fd/{store}", group.split.size),
        rank=group.split.rank,
        world_size=group.split.size,
        timeout=timedelta(seconds=seconds),
        device_id=device if is_gpu else None,
    )
    group.open(dist.group.WORLD)
    # NCCL connects at the first use, which must not be somebody's first token.
    group.sum(torch.zeros(1, device=device))
