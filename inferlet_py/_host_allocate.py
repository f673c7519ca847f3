"""``allocate.wit`` and ``exports.wit`` as the SDK sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = ["ALLOCATE", "EXPORTS", "AllocateHost", "ExportInfo", "ExportsHost"]


class AllocateHost(Protocol):
    """KV pages and embeds; see ``allocate.wit``."""

    def alloc_kvpage(self, queue: int, pages: list[int]) -> None: ...
    def dealloc_kvpage(self, queue: int, pages: list[int]) -> None: ...
    def fork_kvpage(
        self, queue: int, source_pages: list[int], target_pages: list[int]
    ) -> None: ...
    def copy_kvpage(
        self,
        queue: int,
        source_page: int,
        target_page: int,
        source_offset: int,
        target_offset: int,
        count: int,
    ) -> int: ...
    def alloc_emb(self, queue: int, embeds: list[int]) -> None: ...
    def dealloc_emb(self, queue: int, embeds: list[int]) -> None: ...


@dataclass(frozen=True)
class ExportInfo:
    """What is known of an export; see ``exports.wit``.

    Attributes:
        name: Under which this inferlet imports it.
        num_pages: 0 where they are gone with an engine or the server.
        metadata: As given by whoever exported it.
        expires_in: Seconds; None if it stays.
    """

    name: str
    owner: str
    model: str
    num_pages: int
    metadata: bytes
    persistent: bool
    expires_in: float | None
    num_imports: int


class ExportsHost(Protocol):
    """KV pages under names; see ``exports.wit``."""

    def export_kvpage(
        self,
        queue: int,
        pages: list[int],
        name: str,
        persistent: bool,
        permission: str | list[str],
        seconds_to_live: float | None,
        metadata: bytes,
    ) -> None:
        """Offer pages; ``permission`` is ``owner``, ``published``, or a list of users."""
        ...

    def offer_prefix(self, queue: int, pages: list[int], names: list[str]) -> None: ...
    def import_prefix(self, queue: int, names: list[str], pages: list[int]) -> int: ...
    def unexport_kvpage(self, queue: int, name: str) -> None: ...
    def import_kvpage(self, queue: int, name: str, pages: list[int]) -> None: ...
    def get_export(self, queue: int, name: str) -> ExportInfo: ...
    def list_exports(self, queue: int, prefix: str) -> list[ExportInfo]: ...


def _adapt_exports(exports: Any) -> Adapters:
    def export_kvpage(
        queue: int,
        pages: list[int],
        name: str,
        persistent: bool,
        permission: str | list[str],
        seconds_to_live: float | None,
        metadata: bytes,
    ) -> None:
        if isinstance(permission, list):
            made = exports.Permission_Users(permission)
        elif permission == "published":
            made = exports.Permission_Published()
        else:
            made = exports.Permission_Owner()
        exports.export_kvpage(
            queue, pages, name, persistent, made, seconds_to_live, metadata
        )

    def get_export(queue: int, name: str) -> ExportInfo:
        return _read(exports.get_export(queue, name))

    def list_exports(queue: int, prefix: str) -> list[ExportInfo]:
        return [_read(info) for info in exports.list_exports(queue, prefix)]

    return {
        "export_kvpage": export_kvpage,
        "get_export": get_export,
        "list_exports": list_exports,
    }


def _read(info: Any) -> ExportInfo:
    return ExportInfo(
        name=info.name,
        owner=info.owner,
        model=info.model,
        num_pages=info.num_pages,
        metadata=bytes(info.metadata),
        persistent=info.persistent,
        expires_in=info.expires_in,
        num_imports=info.num_imports,
    )


ALLOCATE = HostInterface("allocate", AllocateHost)
EXPORTS = HostInterface("exports", ExportsHost, _adapt_exports)
