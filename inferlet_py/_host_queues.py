"""``queues.wit`` as the SDK sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = ["QUEUES", "QueuesHost"]


class QueuesHost(Protocol):
    """Command queues; see ``queues.wit``."""

    def create_queue(self, queue: int, model: str) -> None: ...
    def destroy_queue(self, queue: int) -> None: ...
    def synchronize(self, queue: int) -> int: ...
    def set_queue_priority(self, queue: int, priority: str) -> None: ...
    def service_id(self, queue: int) -> str: ...
    def debug_queue(self, queue: int, query: str) -> str: ...


def _adapt(queues: Any) -> Adapters:
    priorities = {priority.name.lower(): priority for priority in queues.Priority}

    def set_queue_priority(queue: int, priority: str) -> None:
        queues.set_queue_priority(queue, priorities[priority])

    return {"set_queue_priority": set_queue_priority}


QUEUES = HostInterface("queues", QueuesHost, _adapt)
