"""What we need of CUDA besides kernels: pinned memory, events and graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["CudaRuntime", "Event", "Graph", "Runtime"]


class Event(Protocol):
    """A point in the device's work."""

    def record(self) -> None:
        """Set it to all that was asked for so far."""
        ...

    def synchronize(self) -> None:
        """Wait until the device is there; at once if it was never recorded."""
        ...


class Graph(Protocol):
    """Kernels that were captured, with the addresses that they read and write."""

    def replay(self) -> None:
        """Launch all of them."""
        ...


class Runtime(Protocol):
    """A device; tests have one that is the CPU."""

    @property
    def device(self) -> torch.device:
        """Where tensors are."""
        ...

    def pinned(self, num_bytes: int) -> Tensor:
        """Return ``[num_bytes]`` uint8 on the host, from which copies need not be waited for."""
        ...

    def event(self) -> Event:
        """Return an event that was not recorded yet."""
        ...

    def capture(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Capture what ``run`` launches.

        Args:
            run: Called twice: first to let libraries set themselves up. It may neither wait for
                the device nor copy to the host.

        Returns:
            The graph, and the tensor into which each replay writes the result.
        """
        ...


class CudaRuntime:
    """See :class:`Runtime`, here and below."""

    def __init__(self, index: int = 0) -> None:
        """Use a GPU of this machine."""
        self.device = torch.device("cuda", index)
        self._pool: Any = None  # torch has no public name for what it is

    def pinned(self, num_bytes: int) -> Tensor:  # noqa: D102
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def event(self) -> Event:  # noqa: D102
        make_event: Callable[[], Event] = torch.cuda.Event
        return make_event()

    def capture(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:  # noqa: D102
        # As torch's guide wants it: the first run happens on the stream of the capture.
        make_stream: Callable[[torch.device], torch.cuda.Stream] = torch.cuda.Stream
        stream = make_stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # All graphs take their memory from one pool: only one of them runs at a time.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = run()
        self._pool = graph.pool()
        return graph, result
