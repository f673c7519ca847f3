"""A device that is the CPU, with graphs that replay operations on the tensors they were captured on.

A captured operation is repeated with the very same tensors, and its result is written over the
old one. So whatever Python code decides, allocates or assigns after the capture has no effect
on a replay, just as on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_recorders: list[_Recorder] = []

_WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


def kernel(run: Callable[[], Any]) -> None:
    """Run what stands for one kernel; in a capture it is kept as one operation.

    Args:
        run: Closes over tensors, and nothing that may change besides their contents.
    """
    if not _recorders:
        run()
        return
    recorder = _recorders.pop()
    with torch.utils._python_dispatch._disable_current_modes():
        run()
    _recorders.append(recorder)
    recorder.operations.append(run)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Callable[[], Any]] = []

    def __enter__(self) -> _Recorder:
        _recorders.append(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        _recorders.remove(self)
        super().__exit__(*exception)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        assert name not in _WAITS, f"{name} waits for the device within a capture"
        result = func(*args, **kwargs)
        if not _is_view(result, (args, kwargs)) and "empty" not in name:

            def again() -> None:
                found = func(*args, **kwargs)
                for old, new in zip(
                    tree_leaves(result), tree_leaves(found), strict=True
                ):
                    if old is not new and old.data_ptr() != new.data_ptr():
                        old.copy_(new)

            self.operations.append(again)
        return result


def _is_view(result: Any, arguments: Any) -> bool:
    """Say whether an operation only looks at its arguments differently.

    Those that change them return them; ``to`` and others return a view or a copy.
    """
    tensors = [x for x in tree_leaves(arguments) if isinstance(x, torch.Tensor)]
    if any(result is tensor for tensor in tensors):
        return False
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    return any(x.untyped_storage().data_ptr() in storages for x in tree_leaves(result))


@dataclass
class FakeGraph:
    """What was captured; as :class:`~pie_trio.inference.gpu.runtime.Graph`."""

    operations: list[Callable[[], Any]]
    num_replays: int = 0

    def replay(self) -> None:
        self.num_replays += 1
        for operation in self.operations:
            operation()


@dataclass
class FakeEvent:
    """Counts; as :class:`~pie_trio.inference.gpu.runtime.Event`."""

    log: list[str]
    name: str

    def record(self) -> None:
        self.log.append(f"record {self.name}")

    def synchronize(self) -> None:
        self.log.append(f"wait {self.name}")


@dataclass
class FakeRuntime:
    """As :class:`~pie_trio.inference.gpu.runtime.Runtime`."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    log: list[str] = field(default_factory=list[str])
    graphs: list[FakeGraph] = field(default_factory=list[FakeGraph])
    num_events: int = 0
    pinned_sizes: list[int] = field(default_factory=list[int])

    def pinned(self, num_bytes: int) -> Tensor:
        self.pinned_sizes.append(num_bytes)
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def event(self) -> FakeEvent:
        self.num_events += 1
        return FakeEvent(self.log, str(self.num_events))

    def capture(self, run: Callable[[], Tensor]) -> tuple[FakeGraph, Tensor]:
        run()
        with _Recorder() as recorder:
            result = run()
        graph = FakeGraph(recorder.operations)
        self.graphs.append(graph)
        return graph, result
