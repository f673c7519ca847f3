"""What is closed at the end of a block: ``with``, ``async with``, or either."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

__all__ = ["AsyncCloses", "Closes"]


class _Closable:
    def close(self) -> None:
        """Give back what it holds; a second call does nothing."""
        raise NotImplementedError


class Closes(_Closable):
    """Closed at the end of ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncCloses(_Closable):
    """Closed at the end of ``async with``."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()
