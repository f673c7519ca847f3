"""What is known of an export of KV pages: its name, its pages, and who may import them."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CACHE_PREFIX", "Export", "Permission"]

CACHE_PREFIX = "prefix/"
"""Of names that say which tokens the pages hold. Without metadata nothing is left of such an
export once they are gone: it is never recorded, and never kept without pages."""


@dataclass(frozen=True, slots=True)
class Permission:
    """Who may import, beside the owner.

    Attributes:
        users: These owners.
        is_published: Everybody.
    """

    users: frozenset[str] = frozenset()
    is_published: bool = False

    def allows(self, owner: str) -> bool:
        """Say whether inferlets of another owner may import."""
        return self.is_published or owner in self.users


@dataclass(slots=True)
class Export:
    """Pages under a name.

    Attributes:
        pages: Virtual pages; the export is an owner of each. None are left of one that is lost.
        hidden: For each page what is masked in it, ``[page_size]`` bool, or None.
        metadata: As given by the exporter.
        instance: Name of the exporter; the export ends with it unless it is persistent.
        expires_at: On trio's clock; None if it stays.
        used_at: When it was last imported, or made; on trio's clock.
        made_at: In seconds since 1970.
        record: Its number in the register; None if it is not recorded.
        loss: Why its pages are gone; empty while they are there.
        num_lost: How many pages it had then.
    """

    owner: str
    name: str
    pages: list[int]
    hidden: list[NDArray[np.bool_] | None]
    permission: Permission
    is_persistent: bool
    expires_at: float | None
    metadata: bytes
    instance: str
    used_at: float
    num_imports: int = field(default=0)
    made_at: float = field(default_factory=time.time, compare=False)
    record: int | None = field(default=None, compare=False)
    loss: str = ""
    num_lost: int = 0

    @property
    def is_cache(self) -> bool:
        """Whoever misses it computes its pages again, and need not be told."""
        return self.name.startswith(CACHE_PREFIX) and not self.metadata
