"""``topics.wit``: broadcasts between inferlets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.host.grants import check_grant
from pie_trio.application.host.interface import fallible, interface, waiting
from pie_trio.application.host.messaging import MESSAGE, lift_message, lower_message
from pie_trio.application.host.receiving import open_receive, take_answer
from pie_trio.application.wasm.values import (
    BOOL,
    STRING,
    U32,
    U64,
    Option,
    Record,
    Unit,
)
from pie_trio.control.handles import HandleTable
from pie_trio.control.topics import Mailbox

if TYPE_CHECKING:
    from pie_trio.application.host.session import Session
    from pie_trio.application.waiting import Waiting
    from pie_trio.control.topics import Heard

__all__ = ["INTERFACE", "Subscriptions"]

KIND = "take-broadcast"
BROADCAST_MESSAGE = Record(sender=STRING, content=MESSAGE, num_missed=U64)


class Subscriptions(HandleTable[Mailbox]):
    """What a session keeps for this interface: its open mailboxes."""

    def close(self) -> None:
        """Unsubscribe from all."""
        for mailbox in self.clear():
            mailbox.close()


def broadcast(session: Session, topic: str, content: tuple[str, Any]) -> int:
    """Tell who has subscribed; return how many mailboxes that were."""
    _check_grant(session, topic)
    launch = session.launch
    return session.services.topics.broadcast(
        topic, lift_message(content), owner=launch.owner, sender=launch.instance_id
    )


def subscribe(
    session: Session, subscription: int, topic: str, hears_itself: bool
) -> None:
    """Hear what is broadcast from now on, under an unused number."""
    _check_grant(session, topic)
    session.subscriptions.check_unused([subscription])
    launch = session.launch
    mailbox = session.services.topics.subscribe(
        topic,
        owner=launch.owner,
        subscriber=launch.instance_id,
        hears_itself=hears_itself,
        share=session.share,
    )
    session.subscriptions.add(subscription, mailbox)


def unsubscribe(session: Session, subscription: int) -> None:
    """Hear no more of it."""
    session.subscriptions.remove(subscription).close()


def receive_broadcast(session: Session, subscription: int) -> int:
    """Return a ticket for the next message."""
    mailbox = session.subscriptions.get(subscription)
    return open_receive(session, KIND, mailbox.receive)


def take_broadcast(session: Session, ticket: int) -> tuple[Any, ...] | Waiting | None:
    """Wait for a message and return it; None once the subscription has ended."""
    return take_answer(session, KIND, ticket, _lower)


def _lower(heard: Heard | None) -> tuple[Any, ...] | None:
    if heard is None:
        return None
    return heard.sender, lower_message(heard.message), heard.num_missed


def _check_grant(session: Session, topic: str) -> None:
    """Raise if a topic is another owner's and the instance may not use these."""
    owner, slash, _ = topic.partition("/")
    launch = session.launch
    if owner and slash and owner != launch.owner:
        check_grant(
            session, "topics", f"the topic {topic[:300]}, which is {owner[:300]}'s,"
        )


INTERFACE = interface(
    "topics",
    {
        "broadcast": fallible(broadcast, U32, STRING, MESSAGE),
        "subscribe": fallible(subscribe, Unit(), U32, STRING, BOOL),
        "unsubscribe": fallible(unsubscribe, Unit(), U32),
        "receive-broadcast": fallible(receive_broadcast, U32, U32),
        "take-broadcast": waiting(take_broadcast, Option(BROADCAST_MESSAGE), U32),
    },
    types={"broadcast-message": BROADCAST_MESSAGE},
)
