"""Inferlets that this one launches."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from inferlet_py._channels import BrokenResourceError
from inferlet_py._checkpoints import checkpoint_if_cancelled
from inferlet_py._errors import NotFoundError
from inferlet_py._host import ChildOutcome, get_host
from inferlet_py._messages import MessageIterator, check_message
from inferlet_py._numbers import Numbers
from inferlet_py._nursery import open_nursery
from inferlet_py._scopes import CancelScope, reraise
from inferlet_py._sync import Event
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from inferlet_py._nursery import Nursery

__all__ = ["Child", "ChildFailedError", "spawn"]

_numbers = Numbers()


class ChildFailedError(Exception):
    """An inferlet that this one launched has raised an exception, or was cancelled.

    Attributes:
        kind: Name of the exception's type.
        message: Its message.
        traceback: As Python prints it, with the lines of the child's program; empty if there
            is none.
    """

    def __init__(self, kind: str, message: str, traceback: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message, self.traceback = kind, message, traceback
        if traceback:
            self.add_note(f"The child's {traceback.rstrip()}")


def spawn(program: str = "", /, **arguments: object) -> Child:
    """Return a child to launch.

    ``async with spawn("judge", text=text) as child: ...``

    Args:
        program: Its name on the server; empty for the inferlet's own program.
        arguments: Its arguments, as JSON carries them.
    """
    return Child(program, arguments)


class Child:
    """An inferlet that this one launches; :func:`spawn` makes it.

    It runs for the same owner with the same grants, and is charged together with this one: all
    below one inferlet may use no more than one alone. Its block launches it, and is left once the
    child has ended, as the block of a nursery: if the block raises or is cancelled, the child is
    cancelled; if the child raises, the block is cancelled and raises :class:`ChildFailedError`.
    Where both raise, both are in an ``ExceptionGroup``.

    Entering the block raises:
        NotFoundError: The server has no such program.
        LimitError: There are too many children or instances, or they are nested too deep.
        ForbiddenError: The grant ``spawn`` is missing.
        TypeError: An argument is nothing that JSON can carry.
    """

    def __init__(self, program: str, arguments: dict[str, object]) -> None:
        self.program, self.arguments = program, arguments
        self._number = 0
        self._outcome: ChildOutcome | None = None
        self._failure: ChildFailedError | None = None
        self._ended: Event | None = None
        self._nursery: AbstractAsyncContextManager[Nursery] | None = None

    async def __aenter__(self) -> Child:
        if self._ended is not None:
            raise RuntimeError("a child is launched once: call spawn() for each")
        encoded = json.dumps(self.arguments, ensure_ascii=False)
        await checkpoint_if_cancelled()
        host = get_host()
        number = next(_numbers)
        ticket = host.spawn(number, self.program, encoded)
        self._number, self._ended = number, Event()
        try:
            await wait_ticket(ticket)
            host.finish(ticket)
        except BaseException:
            await self._end_now()
            raise
        self._nursery = open_nursery()
        nursery = await self._nursery.__aenter__()
        nursery.start_soon(self._watch, name=f"the child {self.program}".strip())
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._nursery is not None, "the block was entered"
        try:
            return await self._nursery.__aexit__(error_type, error, traceback)
        except BaseExceptionGroup as group:
            failed: BaseException = self._simplify(group)
        finally:
            get_host().release_child(self._number)
        return reraise(failed)

    def _simplify(self, error: BaseExceptionGroup[BaseException]) -> BaseException:
        """Return the one error of a group; the nursery inside is nobody's business."""
        # What wait() raised in the block is no second failure.
        own = [e for e in error.exceptions if e is not self._failure]
        if self._failure is not None and all(_is_same(e, self._failure) for e in own):
            return self._failure
        return error.exceptions[0] if len(error.exceptions) == 1 else error

    async def send(self, message: str | bytes) -> None:
        """Send a message, which the child receives as from its client.

        Waits while the child has left too many unread.

        Raises:
            BrokenResourceError: The child has ended.
            LimitError: The message is too large.
        """
        host = get_host()
        content = check_message("send", message)
        try:
            ticket = host.send_child(self._number, content)
            if ticket is not None:
                await wait_ticket(ticket)
                host.finish(ticket)
        except NotFoundError as error:
            raise BrokenResourceError(str(error)) from None

    async def receive(self) -> str | bytes | None:
        """Wait for the next message that the child sends; None once it will send no more.

        If this is cancelled, no message is lost.
        """
        host = get_host()
        ticket = host.receive_child(self._number)
        await wait_ticket(ticket)
        return host.take_child_message(ticket)

    def __aiter__(self) -> AsyncIterator[str | bytes]:
        return MessageIterator(self.receive)

    async def wait(self) -> Any:
        """Wait until the child has ended, and return its result.

        Raises:
            ChildFailedError: The child has raised an exception, or was cancelled.
        """
        assert self._ended is not None, "the block was entered"
        await self._ended.wait()
        outcome = self._outcome
        assert outcome is not None, "it has ended"
        if outcome.failure is not None:
            raise ChildFailedError(*outcome.failure)
        if outcome.result is None:
            raise ChildFailedError("Cancelled", "the child was cancelled", "")
        return json.loads(outcome.result)

    def cancel(self) -> None:
        """Cancel the child; its block is then left without an error."""
        if self._outcome is None:
            get_host().cancel_child(self._number)

    async def _watch(self) -> None:
        """Wait for the end of the child, and raise what it raised."""
        host = get_host()
        try:
            ticket = host.wait_child(self._number)
            await wait_ticket(ticket)
            self._note(host.take_outcome(ticket))
        except BaseException:
            await self._end_now(is_released=False)
            raise
        if self._failure is not None:
            raise self._failure

    async def _end_now(self, *, is_released: bool = True) -> None:
        """Cancel the child, and wait until it has given everything back."""
        host = get_host()
        host.cancel_child(self._number)
        with CancelScope(shield=True):
            ticket = host.wait_child(self._number)
            await wait_ticket(ticket)
            self._note(host.take_outcome(ticket))
        if is_released:
            host.release_child(self._number)

    def _note(self, outcome: ChildOutcome) -> None:
        self._outcome = outcome
        if outcome.failure is not None:
            self._failure = ChildFailedError(*outcome.failure)
        if self._ended is not None:
            self._ended.set()


def _is_same(error: BaseException, failure: ChildFailedError) -> bool:
    """Say whether an error is what :meth:`Child.wait` raises for a failure."""
    return isinstance(error, ChildFailedError) and error.args == failure.args
