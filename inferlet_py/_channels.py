"""Memory channels: bounded queues between the tasks of one inferlet."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar, cast

from inferlet_py._checkpoints import (
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    leave_queue,
)
from inferlet_py._sync import WouldBlock
from inferlet_py._tasks import Task, current_task

if TYPE_CHECKING:
    from types import TracebackType

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class EndOfChannel(Exception):  # noqa: N818  # trio's name
    """All senders are closed, and everything they sent has been received."""


class BrokenResourceError(Exception):
    """All receivers are closed: nobody would get what is sent."""


class ClosedResourceError(Exception):
    """This end of the channel was closed by the program itself."""


@dataclass(frozen=True)
class MemoryChannelStatistics:
    """The state of a memory channel.

    Attributes:
        current_buffer_used: Values inside.
        max_buffer_size: How many there may be.
        open_send_channels: Senders that are not closed.
        open_receive_channels: Receivers that are not closed.
        tasks_waiting_send: Tasks that wait for room.
        tasks_waiting_receive: Tasks that wait for a value.
    """

    current_buffer_used: int
    max_buffer_size: float
    open_send_channels: int
    open_receive_channels: int
    tasks_waiting_send: int
    tasks_waiting_receive: int


class _Channel(Generic[T]):
    """What the ends of a channel share."""

    def __init__(self, max_buffer_size: float) -> None:
        self.max_buffer_size = max_buffer_size
        self.buffer: deque[T] = deque()
        self.num_open_senders = 0
        self.num_open_receivers = 0
        # Who waits, in order; the end it waits at, and what it wants to send.
        self.senders: dict[Task, tuple[MemorySendChannel[T], T]] = {}
        self.receivers: dict[Task, MemoryReceiveChannel[T]] = {}

    def statistics(self) -> MemoryChannelStatistics:
        return MemoryChannelStatistics(
            len(self.buffer),
            self.max_buffer_size,
            self.num_open_senders,
            self.num_open_receivers,
            len(self.senders),
            len(self.receivers),
        )


class _ChannelEnd(ABC):
    """What both ends of a channel have in common."""

    @abstractmethod
    def statistics(self) -> MemoryChannelStatistics:
        """Return the state of the channel, for people who debug."""

    @abstractmethod
    def close(self) -> None:
        """Close this end, without a checkpoint."""

    async def aclose(self) -> None:
        """Close this end, and make a checkpoint."""
        self.close()
        await checkpoint()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        _error_type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


class MemorySendChannel(_ChannelEnd, Generic[T_contra]):
    """The end of a memory channel that values go into; ``with`` closes it."""

    def __init__(self, channel: _Channel[T_contra]) -> None:
        self._channel = channel
        self._is_closed = False
        channel.num_open_senders += 1

    def statistics(self) -> MemoryChannelStatistics:
        """Return the state of the channel, for people who debug."""
        return self._channel.statistics()

    def send_nowait(self, value: T_contra) -> None:
        """Send a value.

        Raises:
            WouldBlock: Nobody is waiting for it, and the buffer is full.
            BrokenResourceError: All receivers are closed.
            ClosedResourceError: This end is closed.
        """
        channel = self._channel
        if self._is_closed:
            raise ClosedResourceError
        if not channel.num_open_receivers:
            raise BrokenResourceError
        if channel.receivers:
            task = next(iter(channel.receivers))
            del channel.receivers[task]
            task.reschedule(value)
        elif len(channel.buffer) < channel.max_buffer_size:
            channel.buffer.append(value)
        else:
            raise WouldBlock

    async def send(self, value: T_contra) -> None:
        """Send a value, and wait for room if there is none; see ``send_nowait``.

        If this is cancelled, the value was not sent.
        """
        await checkpoint_if_cancelled()
        try:
            self.send_nowait(value)
        except WouldBlock:
            pass
        else:
            await cancel_shielded_checkpoint()
            return
        task = current_task()
        waiting = self._channel.senders
        waiting[task] = (self, value)
        leave = functools.partial(leave_queue, waiting, task)
        await task.park(leave, "room in a memory channel")

    def clone(self) -> Self:
        """Return another sender; the channel ends when all of them are closed."""
        if self._is_closed:
            raise ClosedResourceError
        return type(self)(self._channel)

    def close(self) -> None:
        """Close this end. Once all senders are closed, receivers find the end."""
        if self._is_closed:
            return
        self._is_closed = True
        channel = self._channel
        for task, (end, _) in list(channel.senders.items()):
            if end is self:
                del channel.senders[task]
                task.reschedule(error=ClosedResourceError())
        channel.num_open_senders -= 1
        if not channel.num_open_senders:
            for task in channel.receivers:
                task.reschedule(error=EndOfChannel())
            channel.receivers.clear()


class MemoryReceiveChannel(_ChannelEnd, Generic[T_co]):
    """The end of a memory channel that values come out of; ``with`` closes it."""

    def __init__(self, channel: _Channel[T_co]) -> None:
        self._channel = channel
        self._is_closed = False
        channel.num_open_receivers += 1

    def statistics(self) -> MemoryChannelStatistics:
        """Return the state of the channel, for people who debug."""
        return self._channel.statistics()

    def receive_nowait(self) -> T_co:
        """Return the next value.

        Raises:
            WouldBlock: There is none yet.
            EndOfChannel: There is none, and all senders are closed.
            ClosedResourceError: This end is closed.
        """
        channel = self._channel
        if self._is_closed:
            raise ClosedResourceError
        if channel.senders:
            task = next(iter(channel.senders))
            _, value = channel.senders.pop(task)
            task.reschedule()
            channel.buffer.append(value)
        if channel.buffer:
            return channel.buffer.popleft()
        if not channel.num_open_senders:
            raise EndOfChannel
        raise WouldBlock

    async def receive(self) -> T_co:
        """Wait for the next value; see ``receive_nowait``.

        If this is cancelled, no value was taken.
        """
        await checkpoint_if_cancelled()
        try:
            value = self.receive_nowait()
        except WouldBlock:
            pass
        else:
            await cancel_shielded_checkpoint()
            return value
        task = current_task()
        waiting = self._channel.receivers
        waiting[task] = self
        leave = functools.partial(leave_queue, waiting, task)
        return cast("T_co", await task.park(leave, "a value from a memory channel"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T_co:
        try:
            return await self.receive()
        except EndOfChannel:
            raise StopAsyncIteration from None

    def clone(self) -> Self:
        """Return another receiver; each value goes to one of them."""
        if self._is_closed:
            raise ClosedResourceError
        return type(self)(self._channel)

    def close(self) -> None:
        """Close this end. Once all receivers are closed, sending fails."""
        if self._is_closed:
            return
        self._is_closed = True
        channel = self._channel
        for task, end in list(channel.receivers.items()):
            if end is self:
                del channel.receivers[task]
                task.reschedule(error=ClosedResourceError())
        channel.num_open_receivers -= 1
        if not channel.num_open_receivers:
            for task in channel.senders:
                task.reschedule(error=BrokenResourceError())
            channel.senders.clear()
            channel.buffer.clear()


class open_memory_channel(  # noqa: N801  # a function, but for `open_memory_channel[T]`
    tuple[MemorySendChannel[T], MemoryReceiveChannel[T]]
):
    """Return the two ends of a new channel.

    Args:
        max_buffer_size: How many values may wait inside. With 0 a value goes from hand to
            hand. ``math.inf`` is possible, and gives up all back-pressure.
    """

    __slots__ = ()

    def __new__(  # type: ignore[misc]  # called like a function
        cls, max_buffer_size: float
    ) -> tuple[MemorySendChannel[T], MemoryReceiveChannel[T]]:
        """Return the sending and the receiving end."""
        if max_buffer_size != math.inf and not isinstance(max_buffer_size, int):
            raise TypeError(
                f"max_buffer_size must be an int or math.inf, not {max_buffer_size!r}"
            )
        if max_buffer_size < 0:
            raise ValueError(f"max_buffer_size must be >= 0, not {max_buffer_size}")
        channel: _Channel[T] = _Channel(max_buffer_size)
        return MemorySendChannel(channel), MemoryReceiveChannel(channel)
