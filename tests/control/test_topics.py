from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.topics import Heard, Mailbox, Topics, TopicUse
from pie_trio.errors import BadArgumentError, ForbiddenError, LimitError
from tests.control.engines import note


def make_topics(
    *, max_unread: int = 8, max_bytes: int = 1000, max_mailboxes: int = 8
) -> Topics:
    return Topics(
        max_unread=max_unread, max_bytes=max_bytes, max_mailboxes=max_mailboxes
    )


def take_all(mailbox: Mailbox) -> list[tuple[str | bytes, int]]:
    """Take what is there: each message, and how many were missed before it."""
    taken = list[tuple[str | bytes, int]]()
    while len(mailbox):
        heard = mailbox.receive(lambda: None).take()
        assert heard is not None
        taken.append((heard.message, heard.num_missed))
    return taken


def test_every_subscriber_hears_what_was_broadcast_after_it_subscribed() -> None:
    topics = make_topics()
    assert topics.broadcast("news", "before", owner="ann", sender="0") == 0
    first = topics.subscribe("news", owner="ann", subscriber="1")
    assert topics.broadcast("news", "a", owner="ann", sender="0") == 1
    second = topics.subscribe("news", owner="ann", subscriber="2")
    assert topics.broadcast("news", b"b", owner="ann", sender="0") == 2
    assert take_all(first) == [("a", 0), (b"b", 0)]
    assert take_all(second) == [(b"b", 0)]


def test_a_receive_waits_for_a_broadcast() -> None:
    topics, told = make_topics(), list[str]()
    mailbox = topics.subscribe("news", owner="ann", subscriber="1")
    receive = mailbox.receive(note(told, "told"))
    topics.broadcast("other", "a", owner="ann", sender="0")
    assert told == []
    topics.broadcast("news", "b", owner="ann", sender="0")
    assert told == ["told"]
    assert receive.take() == Heard("b", "0", 0)


def test_a_subscriber_hears_itself_only_if_it_asks() -> None:
    topics = make_topics()
    deaf = topics.subscribe("news", owner="ann", subscriber="1")
    hearing = topics.subscribe("news", owner="ann", subscriber="1", hears_itself=True)
    assert topics.broadcast("news", "mine", owner="ann", sender="1") == 1
    assert take_all(deaf) == []
    assert take_all(hearing) == [("mine", 0)]


def test_a_full_mailbox_drops_its_oldest_and_says_how_many() -> None:
    topics = make_topics(max_unread=2)
    mailbox = topics.subscribe("news", owner="ann", subscriber="1")
    for message in "abcde":
        topics.broadcast("news", message, owner="ann", sender="0")
    assert take_all(mailbox) == [("d", 3), ("e", 0)]
    topics.broadcast("news", "f", owner="ann", sender="0")
    assert take_all(mailbox) == [("f", 0)]


def test_a_large_message_pushes_out_several_but_keeps_what_was_told_true() -> None:
    topics = make_topics(max_bytes=4)
    mailbox = topics.subscribe("news", owner="ann", subscriber="1")
    receives = [mailbox.receive(lambda: None) for _ in range(3)]
    for message in ("a", "b", "c", "large"[:4]):
        topics.broadcast("news", message, owner="ann", sender="0")
    assert receives[0].take() == Heard("larg", "0", 3)
    assert not receives[1].is_ready


def test_a_message_larger_than_a_mailbox_is_refused_though_nobody_listens() -> None:
    topics = make_topics(max_bytes=4)
    with pytest.raises(LimitError, match="6 bytes"):
        topics.broadcast("news", "\N{EURO SIGN}" * 2, owner="ann", sender="0")


def test_users_do_not_hear_each_other() -> None:
    topics = make_topics()
    of_ann = topics.subscribe("news", owner="ann", subscriber="1")
    topics.broadcast("news", "bob's", owner="bob", sender="2")
    assert take_all(of_ann) == []
    with pytest.raises(ForbiddenError, match="grant for ann/news"):
        topics.broadcast("ann/news", "x", owner="bob", sender="2")
    with pytest.raises(ForbiddenError, match="belongs to ann"):
        topics.subscribe("ann/news", owner="bob", subscriber="2")
    topics.broadcast("ann/news", "own", owner="ann", sender="3")
    assert take_all(of_ann) == [("own", 0)]


def test_a_grant_opens_a_topic_of_another_owner_for_one_use() -> None:
    asked = list[tuple[str, str, str]]()

    def may_use(user: str, topic: str, use: TopicUse) -> bool:
        asked.append((user, topic, use))
        return use == "subscribe"

    topics = Topics(max_unread=8, max_bytes=100, max_mailboxes=8, may_use=may_use)
    mailbox = topics.subscribe("ann/a/b", owner="bob", subscriber="2")
    with pytest.raises(ForbiddenError, match="to broadcast"):
        topics.broadcast("ann/a/b", "x", owner="bob", sender="2")
    topics.broadcast("ann/a/b", "y", owner="ann", sender="1")
    assert take_all(mailbox) == [("y", 0)]
    assert asked == [("bob", "ann/a/b", "subscribe"), ("bob", "ann/a/b", "broadcast")]


@pytest.mark.parametrize("name", ["", "/", "/a", "a/", "a\n", "x" * 257])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    topics = make_topics()
    with pytest.raises(BadArgumentError, match="no name of a topic"):
        topics.subscribe(name, owner="ann", subscriber="1")
    assert len(topics) == 0


def test_unsubscribing_gives_everything_back_and_wakes_who_waits() -> None:
    topics, told = make_topics(max_mailboxes=1), list[str]()
    mailbox = topics.subscribe("news", owner="ann", subscriber="1")
    with pytest.raises(LimitError, match="unsubscribe"):
        topics.subscribe("other", owner="ann", subscriber="1")
    receives = [mailbox.receive(note(told, name)) for name in "ab"]
    mailbox.close()
    mailbox.close()
    assert [receive.take() for receive in receives] == [None, None]
    assert told == ["a", "b"]
    assert len(topics) == 0
    topics.subscribe("other", owner="ann", subscriber="1")


def test_a_subscriber_that_ends_leaves_nothing_behind() -> None:
    topics = make_topics()
    for name in ("a", "a", "b"):
        topics.subscribe(name, owner="ann", subscriber="1")
    other = topics.subscribe("b", owner="ann", subscriber="2")
    topics.broadcast("b", "x", owner="ann", sender="3")
    topics.close_all("1")
    topics.close_all("1")
    assert len(topics) == 1
    assert take_all(other) == [("x", 0)]
    topics.close_all("2")
    assert len(topics) == 0


STEPS = st.one_of(
    st.tuples(st.just("subscribe"), st.integers(0, 2), st.sampled_from("ab")),
    st.tuples(st.just("broadcast"), st.integers(0, 2), st.sampled_from("ab")),
    st.tuples(st.just("take"), st.integers(0, 9), st.just("")),
    st.tuples(st.just("close"), st.integers(0, 9), st.just("")),
)


@given(st.lists(STEPS, max_size=60), st.integers(1, 4), st.integers(3, 8))
def test_a_mailbox_holds_the_newest_of_what_its_subscriber_should_hear(
    steps: list[tuple[str, int, str]], max_unread: int, max_bytes: int
) -> None:
    topics = make_topics(max_unread=max_unread, max_bytes=max_bytes, max_mailboxes=1000)
    mailboxes = list[Mailbox]()
    heard = dict[Mailbox, list[str]]()  # what it should hear
    seen = dict[Mailbox, int]()  # of these, taken or reported as missed
    for number, (step, who, topic) in enumerate(steps):
        if step == "subscribe":
            mailbox = topics.subscribe(topic, owner="ann", subscriber=str(who))
            mailboxes.append(mailbox)
            heard[mailbox], seen[mailbox] = [], 0
        elif step == "broadcast":
            message = str(number).zfill(1 + number % 3)
            topics.broadcast(topic, message, owner="ann", sender=str(who))
            for mailbox in mailboxes:
                if mailbox.topic == f"ann/{topic}" and mailbox.subscriber != str(who):
                    heard[mailbox].append(message)
        elif step == "take" and who < len(mailboxes) and len(mailboxes[who]):
            mailbox = mailboxes[who]
            result = mailbox.receive(lambda: None).take()
            assert result is not None
            seen[mailbox] += result.num_missed
            assert result.message == heard[mailbox][seen[mailbox]]
            seen[mailbox] += 1
        elif step == "close" and who < len(mailboxes):
            mailboxes.pop(who).close()
        for mailbox in mailboxes:
            assert len(mailbox) <= max_unread
            assert mailbox.num_bytes <= max_bytes
            unread = heard[mailbox][seen[mailbox] :]
            newest = unread[len(unread) - len(mailbox) :]
            assert mailbox.num_bytes == sum(map(len, newest))
    assert len(topics) == len({mailbox.topic for mailbox in mailboxes})
    topics.close_all("0")
    topics.close_all("1")
    topics.close_all("2")
    assert len(topics) == 0
