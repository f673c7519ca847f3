"""Broadcasts between the inferlets of a server: bounded mailboxes by topic and subscriber.

A topic belongs to an owner, a user of the server, and its full name is ``owner/topic``. An
inferlet names the topics of its own owner without the first part. A topic of another owner
needs a grant, so users cannot hear each other unless the operator lets them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pie_trio.control.quotas import Share
from pie_trio.control.receives import ReceiveQueue, message_bytes
from pie_trio.errors import BadArgumentError, ForbiddenError, LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.outbox import Message
from pie_trio.control.receives import Receive

__all__ = ["Heard", "Mailbox", "TopicUse", "Topics"]

MAX_NAME_CHARS = 256

TopicUse = Literal["broadcast", "subscribe"]


@dataclass(frozen=True, slots=True)
class Heard:
    """A message from a topic.

    Attributes:
        message: As it was broadcast.
        sender: The instance that broadcast it.
        num_missed: Messages that were dropped between the one taken before and this one.
    """

    message: Message
    sender: str
    num_missed: int


class Mailbox:
    """What one subscriber has not yet taken of one topic. Made by :meth:`Topics.subscribe`."""

    def __init__(
        self,
        *,
        topic: str,
        subscriber: str,
        hears_itself: bool,
        max_unread: int,
        max_bytes: int,
        on_close: Callable[[Mailbox], None],
        share: Share,
    ) -> None:
        self.topic, self.subscriber = topic, subscriber
        self.hears_itself = hears_itself
        self.max_unread, self.max_bytes = max_unread, max_bytes
        self._on_close, self._share = on_close, share
        self._messages: deque[tuple[Message, str, int]] = deque()  # sender, size
        self._num_bytes = self._num_missed = 0
        self._is_closed = False
        self._receives: ReceiveQueue[Heard | None] = ReceiveQueue(
            has_next=lambda: bool(self._messages) or self._is_closed,
            take_next=self._take_next,
        )

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def num_bytes(self) -> int:
        """The size of the messages that wait to be taken."""
        return self._num_bytes

    def receive(self, on_message: Callable[[], None]) -> Receive[Heard | None]:
        """Wait for the next message, and call ``on_message`` once it can be taken.

        Taking gives None once the mailbox is closed. ``on_message`` may be called before this
        returns; it may not wait, nor take by itself.
        """
        return self._receives.add(on_message)

    def close(self) -> None:
        """Unsubscribe: drop what was not taken. Closing again does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._messages.clear()
        self._count(-self._num_bytes)
        self._share.give("subscriptions")
        self._on_close(self)
        self._receives.tell_next()

    def deliver(self, message: Message, *, sender: str, size: int) -> None:
        """Append a message, dropping the oldest ones for it. For :class:`Topics`."""
        assert size <= self.max_bytes, "a broadcast that fits no mailbox is refused"
        while self._messages and (
            len(self._messages) >= self.max_unread
            or self._num_bytes + size > self.max_bytes
        ):
            self._drop_oldest()
        # Where the mailboxes of all inferlets of a user are full, the rule is the same.
        while self._messages and self._share.room("unread_bytes") < size:
            self._drop_oldest()
        if self._share.room("unread_bytes") < size:
            self._num_missed += 1
            return
        self._messages.append((message, sender, size))
        self._count(size)
        self._receives.tell_next()

    def _drop_oldest(self) -> None:
        self._count(-self._messages.popleft()[2])
        self._num_missed += 1

    def _count(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        if num_bytes < 0:
            self._share.give("unread_bytes", -num_bytes)
        else:
            self._share.take("unread_bytes", num_bytes)

    def _take_next(self) -> Heard | None:
        if not self._messages:
            return None
        message, sender, size = self._messages.popleft()
        self._count(-size)
        num_missed, self._num_missed = self._num_missed, 0
        return Heard(message, sender, num_missed)


class Topics:
    """Who has subscribed to what. A topic is there while somebody has subscribed to it.

    A broadcast never waits. Where a mailbox is full its oldest messages are dropped, and the
    next message taken from it says how many were missed: a slow listener hears what is new
    and knows that it has gaps; it cannot hold up who broadcasts.

    Args:
        max_unread: Most messages in a mailbox.
        max_bytes: The same for their size; no broadcast may be larger.
        max_mailboxes: Most open mailboxes of one subscriber.
        may_use: Asked whether a user may use a topic of another one, given as the user, the
            full name of the topic, and the use. Without it nobody may.
    """

    def __init__(
        self,
        *,
        max_unread: int,
        max_bytes: int,
        max_mailboxes: int,
        may_use: Callable[[str, str, TopicUse], bool] | None = None,
    ) -> None:
        assert max_unread > 0, "a mailbox has room for the newest message at least"
        self.max_unread, self.max_bytes = max_unread, max_bytes
        self.max_mailboxes = max_mailboxes
        self._may_use = may_use
        self._mailboxes: dict[str, dict[Mailbox, None]] = {}  # sets in order
        self._by_subscriber: dict[str, dict[Mailbox, None]] = {}

    def __len__(self) -> int:
        return len(self._mailboxes)

    def subscribe(
        self,
        topic: str,
        *,
        owner: str,
        subscriber: str,
        hears_itself: bool = False,
        share: Share | None = None,
    ) -> Mailbox:
        """Return a new mailbox, which gets what is broadcast from now on, in order.

        A subscriber that subscribes twice has two mailboxes, and each gets everything: two of
        its tasks can listen without knowing of each other.

        Args:
            topic: Its name, or ``owner/name`` for a topic of another owner.
            owner: The user on whose behalf the subscriber runs.
            subscriber: The id of the instance.
            hears_itself: Whether it gets its own broadcasts too. By default it does not: most
                inferlets that say and hear the same things would have to filter theirs out.
            share: Of the quotas that count it, and what waits in it.

        Raises:
            BadArgumentError: The name is empty or too long, or has unprintable characters.
            ForbiddenError: The topic belongs to another owner, and there is no grant.
            LimitError: The subscriber has as many mailboxes as it may have, or its user.
        """
        name = self._resolve(topic, owner, "subscribe")
        if len(self._by_subscriber.get(subscriber, ())) >= self.max_mailboxes:
            raise LimitError(
                f"an inferlet may have {self.max_mailboxes} subscriptions at once: "
                "unsubscribe from some first"
            )
        share = share or Share()
        share.check("subscriptions", 1)
        share.take("subscriptions")
        mailbox = Mailbox(
            topic=name,
            subscriber=subscriber,
            hears_itself=hears_itself,
            max_unread=self.max_unread,
            max_bytes=self.max_bytes,
            on_close=self._remove,
            share=share,
        )
        self._mailboxes.setdefault(name, {})[mailbox] = None
        self._by_subscriber.setdefault(subscriber, {})[mailbox] = None
        return mailbox

    def broadcast(
        self, topic: str, message: Message, *, owner: str, sender: str
    ) -> int:
        """Put a message into the mailboxes of a topic, at once, and return their number.

        Args:
            topic: Its name, or ``owner/name`` for a topic of another owner.
            message: Text or bytes.
            owner: The user on whose behalf the sender runs.
            sender: The id of the instance. Its own mailboxes get nothing, unless they hear it.

        Raises:
            BadArgumentError: The name is empty or too long, or has unprintable characters.
            ForbiddenError: The topic belongs to another owner, and there is no grant.
            LimitError: The message is larger than a mailbox.
        """
        name = self._resolve(topic, owner, "broadcast")
        size = message_bytes(message)
        if size > self.max_bytes:
            raise LimitError(
                f"a broadcast of {size} bytes is too large, at most {self.max_bytes} are "
                "allowed: send it in parts, or put it into the store and broadcast the key"
            )
        listeners = [
            mailbox
            for mailbox in self._mailboxes.get(name, ())
            if mailbox.hears_itself or mailbox.subscriber != sender
        ]
        for mailbox in listeners:
            mailbox.deliver(message, sender=sender, size=size)
        return len(listeners)

    def close_all(self, subscriber: str) -> None:
        """Close all mailboxes of a subscriber, which has ended."""
        for mailbox in list(self._by_subscriber.get(subscriber, ())):
            mailbox.close()

    def _remove(self, mailbox: Mailbox) -> None:
        _discard(self._mailboxes, mailbox.topic, mailbox)
        _discard(self._by_subscriber, mailbox.subscriber, mailbox)

    def _resolve(self, topic: str, owner: str, use: TopicUse) -> str:
        """Return the full name of a topic that the owner may use."""
        assert owner, "everybody has a name"
        assert "/" not in owner, "it would read as the topic of another owner"
        if len(topic) > MAX_NAME_CHARS or not topic.isprintable():
            raise BadArgumentError(
                f"{topic[:80]!r} is no name of a topic: at most {MAX_NAME_CHARS} printable "
                "characters are allowed"
            )
        first, slash, rest = topic.partition("/")
        if not (first and (rest or not slash)):
            raise BadArgumentError(
                f"{topic!r} is no name of a topic: expected a name, or owner/name"
            )
        if not slash:
            return f"{owner}/{topic}"
        if first == owner or (self._may_use and self._may_use(owner, topic, use)):
            return topic
        raise ForbiddenError(
            f"the topic {topic} belongs to {first}: to {use} there, {owner} needs a grant "
            f"for {topic}"
        )


def _discard(
    groups: dict[str, dict[Mailbox, None]], key: str, mailbox: Mailbox
) -> None:
    """Take a mailbox out of its group, and the group away with its last one."""
    group = groups[key]
    del group[mailbox]
    if not group:
        del groups[key]
