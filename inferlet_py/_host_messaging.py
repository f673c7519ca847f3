"""``messaging.wit``, ``topics.wit`` and ``children.wit`` as the SDK sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from inferlet_py._binding import HostInterface

if TYPE_CHECKING:
    from inferlet_py._binding import Adapters

__all__ = [
    "CHILDREN",
    "MESSAGING",
    "TOPICS",
    "BroadcastMessage",
    "ChildOutcome",
    "ChildrenHost",
    "Message",
    "MessagingHost",
    "TopicsHost",
]

Message = str | bytes


class MessagingHost(Protocol):
    """The client; see ``messaging.wit``."""

    def send(self, text: str) -> int | None: ...
    def send_bytes(self, data: bytes) -> int | None: ...
    def receive(self) -> int: ...
    def take_message(self, ticket: int) -> Message | None: ...


@dataclass(frozen=True)
class BroadcastMessage:
    """A message that was broadcast.

    Attributes:
        sender: The name of the inferlet that broadcast it.
        content: Text or bytes.
        num_missed: How many messages between the one before and this one were dropped,
            because too many were left unread.
    """

    sender: str
    content: str | bytes
    num_missed: int


class TopicsHost(Protocol):
    """Broadcasts between inferlets; see ``topics.wit``."""

    def broadcast(self, topic: str, content: Message) -> int: ...
    def subscribe(self, subscription: int, topic: str, hears_itself: bool) -> None: ...
    def unsubscribe(self, subscription: int) -> None: ...
    def receive_broadcast(self, subscription: int) -> int: ...
    def take_broadcast(self, ticket: int) -> BroadcastMessage | None: ...


@dataclass(frozen=True)
class ChildOutcome:
    """What a child ended with.

    Attributes:
        result: As JSON, if it returned.
        failure: Type, message and traceback, if it raised.
    """

    result: str | None = None
    failure: tuple[str, str, str] | None = None


class ChildrenHost(Protocol):
    """Inferlets that this one launches; see ``children.wit``."""

    def spawn(self, child: int, program: str, arguments: str) -> int: ...
    def send_child(self, child: int, content: Message) -> int | None: ...
    def receive_child(self, child: int) -> int: ...
    def take_child_message(self, ticket: int) -> Message | None: ...
    def wait_child(self, child: int) -> int: ...
    def take_outcome(self, ticket: int) -> ChildOutcome: ...
    def cancel_child(self, child: int) -> None: ...
    def release_child(self, child: int) -> None: ...


def _adapt_messaging(messaging: Any) -> Adapters:
    def take_message(ticket: int) -> Message | None:
        return _read(messaging.take_message(ticket))

    return {"take_message": take_message}


def _adapt_topics(topics: Any) -> Adapters:
    def broadcast(topic: str, content: Message) -> int:
        told: int = topics.broadcast(topic, _make(topics.messaging, content))
        return told

    def take_broadcast(ticket: int) -> BroadcastMessage | None:
        found = topics.take_broadcast(ticket)
        if found is None:
            return None
        content = _read(found.content)
        assert content is not None, "every broadcast has a content"
        return BroadcastMessage(found.sender, content, found.num_missed)

    return {"broadcast": broadcast, "take_broadcast": take_broadcast}


def _adapt_children(children: Any) -> Adapters:
    def send_child(child: int, content: Message) -> int | None:
        ticket: int | None = children.send_child(
            child, _make(children.messaging, content)
        )
        return ticket

    def take_child_message(ticket: int) -> Message | None:
        return _read(children.take_child_message(ticket))

    def take_outcome(ticket: int) -> ChildOutcome:
        outcome = children.take_outcome(ticket)
        if isinstance(outcome, children.Outcome_Returned):
            return ChildOutcome(result=outcome.value)
        if isinstance(outcome, children.Outcome_Raised):
            kind, message, traceback = outcome.value
            return ChildOutcome(failure=(kind, message, traceback))
        return ChildOutcome()

    return {
        "send_child": send_child,
        "take_child_message": take_child_message,
        "take_outcome": take_outcome,
    }


def _make(messaging: Any, content: Message) -> Any:
    if isinstance(content, str):
        return messaging.Message_Text(content)
    return messaging.Message_Binary(content)


def _read(message: Any) -> Message | None:
    if message is None:
        return None
    value = message.value
    return value if isinstance(value, str) else bytes(value)


MESSAGING = HostInterface("messaging", MessagingHost, _adapt_messaging)
TOPICS = HostInterface("topics", TopicsHost, _adapt_topics)
CHILDREN = HostInterface("children", ChildrenHost, _adapt_children)
