"""The KV pages of one inferlet on one model: its handles, and what it has masked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pie_trio.control.handles import HandleTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pie_trio.control.quotas import Share

__all__ = ["PageTable"]


class PageTable(HandleTable[int]):
    """Maps page handles to virtual pages.

    Attributes:
        hidden: By handle, ``[page_size]`` bool: tokens that are not attended to. A mask belongs
            to the handle, not to the page: others who share the page see it whole.
        changes: How often something that was known of a handle ceased to hold: it was given back,
            got another page or mask, or a slot of its page was overwritten.
    """

    def __init__(
        self, *, max_handles: int, page_size: int, share: Share | None = None
    ) -> None:
        super().__init__("page", max_handles=max_handles, share=share)
        self.page_size = page_size
        self.hidden: dict[int, NDArray[np.bool_]] = {}
        self.changes = 0

    def replace(self, handle: int, value: int) -> None:
        """Let a known handle stand for another page."""
        super().replace(handle, value)
        self.changes += 1

    def remove(self, handle: int) -> int:
        """Forget a handle and its mask; see :meth:`HandleTable.remove`."""
        page = super().remove(handle)
        self.hidden.pop(handle, None)
        self.changes += 1
        return page

    def values(self) -> list[int]:
        """Return the virtual page of each handle."""
        return list(self._values.values())

    def clear(self) -> list[int]:
        """Forget everything; see :meth:`HandleTable.clear`."""
        self.hidden.clear()
        self.changes += 1
        return super().clear()

    def get_all(self, handles: Sequence[int]) -> list[int]:
        """Return what known handles stand for.

        Raises:
            UnknownHandleError: One is not in this table.
        """
        try:
            return list(map(self._values.__getitem__, handles))
        except KeyError:
            return [self.get(handle) for handle in handles]  # which tells the first

    def holds(self, handle: int, page: int) -> bool:
        """Say whether a handle is known, and stands for this page."""
        return self._values.get(handle) == page

    def hide(self, handle: int, is_hidden: NDArray[np.bool_]) -> None:
        """Set the mask of a known handle: ``[page_size]`` bool."""
        self.changes += 1
        if is_hidden.any():
            self.hidden[handle] = is_hidden
        else:
            self.hidden.pop(handle, None)

    def hidden_slots(self, handles: Sequence[int]) -> NDArray[np.bool_] | None:
        """Return ``[len(handles) * page_size]`` bool, or None where nothing is hidden."""
        if self.hidden.keys().isdisjoint(handles):
            return None
        none = np.zeros(self.page_size, np.bool_)
        return np.concatenate([self.hidden.get(handle, none) for handle in handles])
