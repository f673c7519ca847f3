"""Handles: small integers that an inferlet chooses, valid in its own table only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from pie_trio.errors import BadArgumentError, LimitError, UnknownHandleError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pie_trio.control.quotas import Share

__all__ = ["HandleTable"]

T = TypeVar("T")


class HandleTable(Generic[T]):
    """Maps one inferlet's handles of one kind to what they stand for.

    Args:
        kind: What error messages call a handle, as ``page``.
        max_handles: Most handles at once.
        share: Of the quotas that count these handles too, if any does.
    """

    def __init__(
        self, kind: str, *, max_handles: int, share: Share | None = None
    ) -> None:
        self.kind, self.max_handles = kind, max_handles
        self._share = share
        self._values: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[int]:
        return iter(self._values)

    def check_unused(self, handles: list[int]) -> None:
        """Raise unless all handles may be added at once.

        Raises:
            BadArgumentError: One is in use already, or is named twice.
            LimitError: There would be too many, for the inferlet, its user or the server.
        """
        if len(set(handles)) != len(handles):
            raise BadArgumentError(
                f"the same {self.kind} is named twice: choose a number for each"
            )
        for handle in handles:
            if handle in self._values:
                raise BadArgumentError(
                    f"{self.kind} {handle} is in use: choose another number, or give it back first"
                )
        if len(self._values) + len(handles) > self.max_handles:
            raise LimitError(
                f"{len(self._values) + len(handles)} {self.kind}s asked for, "
                f"but an inferlet may have {self.max_handles}: give some back first"
            )
        if self._share is not None:
            self._share.check(f"{self.kind}s", len(handles))

    def add(self, handle: int, value: T) -> None:
        """Add a handle that :meth:`check_unused` let through."""
        assert handle not in self._values, "callers check before they add"
        self._values[handle] = value
        if self._share is not None:
            self._share.take(f"{self.kind}s")

    def get(self, handle: int) -> T:
        """Return what the handle stands for.

        Raises:
            UnknownHandleError: It is not in this table.
        """
        try:
            return self._values[handle]
        except KeyError:
            raise UnknownHandleError(self.kind, handle) from None

    def replace(self, handle: int, value: T) -> None:
        """Let a known handle stand for something else."""
        assert handle in self._values, "only a known handle is replaced"
        self._values[handle] = value

    def remove(self, handle: int) -> T:
        """Forget a handle and return what it stood for.

        Raises:
            UnknownHandleError: It is not in this table.
        """
        value = self.get(handle)
        del self._values[handle]
        if self._share is not None:
            self._share.give(f"{self.kind}s")
        return value

    def clear(self) -> list[T]:
        """Forget all handles and return what they stood for."""
        values = list(self._values.values())
        self._values.clear()
        if self._share is not None:
            self._share.give(f"{self.kind}s", len(values))
        return values
