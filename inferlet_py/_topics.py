"""Broadcasts between inferlets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inferlet_py._channels import ClosedResourceError
from inferlet_py._closing import AsyncCloses
from inferlet_py._host import BroadcastMessage, get_host
from inferlet_py._messages import check_message
from inferlet_py._numbers import Numbers
from inferlet_py._tasks import wait_ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Subscription", "broadcast", "subscribe"]

_numbers = Numbers()


def broadcast(topic: str, message: str | bytes) -> int:
    """Tell all inferlets that have subscribed to a topic, and return how many were told.

    Never waits: those who leave too much unread miss the oldest messages, and are told so. The
    inferlet itself hears nothing, unless it says ``subscribe(topic, hears_itself=True)``.

    Args:
        topic: A name; ``owner/name`` is a topic of another owner.
        message: Text or bytes.

    Raises:
        BadArgumentError: This is no name of a topic.
        ForbiddenError: The topic is another owner's, and the grant ``topics`` is missing.
        LimitError: The message is too large.
    """
    return get_host().broadcast(topic, check_message("broadcast", message))


def subscribe(topic: str, *, hears_itself: bool = False) -> Subscription:
    """Return a subscription to a topic, which hears what is broadcast while it is open.

    ``async with subscribe("news") as subscription: async for message in subscription: ...``

    Args:
        topic: A name; ``owner/name`` is a topic of another owner.
        hears_itself: Whether it hears this inferlet's own broadcasts too.
    """
    return Subscription(topic, hears_itself=hears_itself)


class Subscription(AsyncCloses):
    """What is broadcast to a topic; :func:`subscribe` makes it, its block opens it.

    Opening it raises:
        BadArgumentError: This is no name of a topic.
        ForbiddenError: The topic is another owner's, and the grant ``topics`` is missing.
        LimitError: The inferlet has too many subscriptions.
    """

    def __init__(self, topic: str, *, hears_itself: bool) -> None:
        self.topic = topic
        self._hears_itself = hears_itself
        self._number: int | None = None

    async def __aenter__(self) -> Subscription:
        if self._number is not None:
            raise RuntimeError("a subscription is opened once at a time")
        number = next(_numbers)
        get_host().subscribe(number, self.topic, self._hears_itself)
        self._number = number
        return self

    def close(self) -> None:
        """Hear no more; whoever waits for a message gets None."""
        number, self._number = self._number, None
        if number is not None:
            get_host().unsubscribe(number)

    async def receive(self) -> BroadcastMessage | None:
        """Wait for the next message; None if the subscription is closed meanwhile.

        If this is cancelled, no message is lost.

        Raises:
            ClosedResourceError: The subscription is not open.
        """
        if self._number is None:
            raise ClosedResourceError
        host = get_host()
        ticket = host.receive_broadcast(self._number)
        await wait_ticket(ticket)
        return host.take_broadcast(ticket)

    def __aiter__(self) -> AsyncIterator[BroadcastMessage]:
        return self

    async def __anext__(self) -> BroadcastMessage:
        message = await self.receive()
        if message is None:
            raise StopAsyncIteration
        return message
