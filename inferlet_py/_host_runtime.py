"""``runtime.wit`` as the SDK sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface, never_fails

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = ["RUNTIME", "RuntimeHost"]


class RuntimeHost(Protocol):
    """The instance itself."""

    @never_fails
    def get_version(self) -> str: ...
    @never_fails
    def get_instance_id(self) -> str: ...
    @never_fails
    def get_arguments(self) -> str: ...
    @never_fails
    def now(self) -> float: ...
    @never_fails
    def get_owner(self) -> str: ...
    @never_fails
    def log(self, level: str, text: str, fields: str = "") -> None: ...
    @never_fails
    def begin_span(self, name: str) -> int: ...
    @never_fails
    def end_span(self, span: int) -> None: ...
    def memory_pressure(self) -> int: ...
    def suspend_pages(self) -> int: ...
    def debug_query(self, query: str) -> str: ...


def _adapt(runtime: Any) -> Adapters:
    levels = {level.name.lower(): level for level in runtime.Level}

    def log(level: str, text: str, fields: str = "") -> None:
        runtime.log(levels[level], text, fields)

    return {"log": log}


RUNTIME = HostInterface("runtime", RuntimeHost, _adapt)
