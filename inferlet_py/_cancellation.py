"""The tree that carries cancellation: open scopes are its nodes, tasks its leaves.

Deadlines and ``with`` blocks live in ``_scopes``; who runs when, in ``_kernel``.
"""

from __future__ import annotations

import math
from typing import Protocol, Self, cast, final


@final
class Cancelled(BaseException):
    """Raised at a checkpoint inside a cancelled scope, to unwind up to that scope.

    Let it pass: clean up in ``finally``, and catch it only to re-raise it. Only the
    kernel makes one; to cancel something, call ``CancelScope.cancel()``.
    """

    def __new__(cls, *_args: object) -> Self:
        """Refuse: a ``Cancelled`` that no scope waits for would never be caught."""
        raise TypeError(
            "Cancelled cannot be raised by hand: call cancel() on the CancelScope "
            "(or nursery.cancel_scope) that should stop"
        )

    def __init_subclass__(cls) -> None:
        raise TypeError("Cancelled cannot be subclassed")

    @classmethod
    def _create(cls) -> Self:
        return BaseException.__new__(cls)


def make_cancelled() -> Cancelled:
    """Return what a cancelled scope throws into its tasks."""
    return Cancelled._create()  # pyright: ignore[reportPrivateUsage]


def split_cancelled(error: BaseException) -> tuple[bool, BaseException | None]:
    """Return whether there is any ``Cancelled`` in the error, and what else there is."""
    if isinstance(error, Cancelled):
        return True, None
    if not isinstance(error, BaseExceptionGroup):
        return False, error
    group = cast("BaseExceptionGroup[BaseException]", error)
    matched, rest = group.split(Cancelled)
    return (False, group) if matched is None else (True, rest)


class Cancellable(Protocol):
    """A leaf of the tree, a task."""

    def deliver_cancel(self) -> None:
        """Wake up with ``Cancelled`` if blocked in something that can be given up."""


class CancelNode:
    """An open cancel scope, as its tasks and the scopes inside it see it.

    Attributes:
        is_cancelled: Whether checkpoints directly inside raise ``Cancelled``, be it for
            this scope or for one around it. Can become False again by shielding.
        tasks: The tasks whose innermost open scope is this one, in order of entry.
    """

    __slots__ = (
        "_cancel_called",
        "_children",
        "_is_shielded",
        "_parent",
        "deadline",
        "is_cancelled",
        "tasks",
    )

    def __init__(
        self,
        parent: CancelNode | None,
        *,
        deadline: float = math.inf,
        is_shielded: bool = False,
        cancel_called: bool = False,
    ) -> None:
        self.deadline = deadline
        self.tasks: dict[Cancellable, None] = {}
        self._children: dict[CancelNode, None] = {}
        self._cancel_called = cancel_called
        self._is_shielded = is_shielded
        self._parent = parent
        if parent is not None:
            parent._children[self] = None
        self.is_cancelled = cancel_called or self.inherits_cancellation

    @property
    def parent(self) -> CancelNode | None:
        """The scope around this one; ``move_children_to`` may change it."""
        return self._parent

    @property
    def inherits_cancellation(self) -> bool:
        """Whether a scope around this one is cancelled, and no shield is in between."""
        parent = self._parent
        return parent is not None and not self._is_shielded and parent.is_cancelled

    def cancel(self) -> None:
        """Cancel everything inside that is not shielded."""
        self._cancel_called = True
        self._refresh()

    def set_shield(self, is_shielded: bool) -> None:
        """Hide the scopes around this one, or let them be seen again."""
        self._is_shielded = is_shielded
        self._refresh()

    def effective_deadline(self) -> float:
        """Return when a task inside will be cancelled, as far as is known now."""
        if self.is_cancelled:
            return -math.inf
        if self._is_shielded or self._parent is None:
            return self.deadline
        return min(self.deadline, self._parent.effective_deadline())

    def encloses(self, other: CancelNode | None) -> bool:
        """Return whether ``other`` is this node or somewhere below it."""
        while other is not None and other is not self:
            other = other._parent
        return other is not None

    def close(self) -> None:
        """Leave the tree. Whatever is still inside belongs to no scope: cancel it."""
        self._set_parent(None)
        if self.tasks or self._children:
            self.cancel()

    def move_children_to(self, new_parent: CancelNode) -> None:
        """Hang the scopes directly inside this one below another."""
        children = list(self._children)
        # Cancelling runs abort callbacks. None may see half of the move, so all nodes
        # leave the old place before the first one reaches the new.
        for child in children:
            child._set_parent(None)
        for child in children:
            child._set_parent(new_parent)
            child._refresh()

    def _set_parent(self, parent: CancelNode | None) -> None:
        if self._parent is not None:
            del self._parent._children[self]
        self._parent = parent
        if parent is not None:
            parent._children[self] = None

    def _refresh(self) -> None:
        # A stack instead of recursion: a guest has little C stack, and a program may
        # nest its scopes as deep as it likes.
        todo: list[CancelNode] = [self]
        while todo:
            node = todo.pop()
            is_cancelled = node._cancel_called or node.inherits_cancellation
            if is_cancelled == node.is_cancelled:
                continue
            node.is_cancelled = is_cancelled
            if is_cancelled:
                for task in list(node.tasks):
                    task.deliver_cancel()
            todo.extend(reversed(node._children))
