from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.receives import Receive, ReceiveQueue, message_bytes
from tests.control.engines import note


class Source:
    """A queue of numbers, and who waits for them."""

    def __init__(self) -> None:
        self.items: deque[int] = deque()
        self.receives: ReceiveQueue[int] = ReceiveQueue(
            has_next=lambda: bool(self.items), take_next=self.items.popleft
        )

    def put(self, item: int) -> None:
        self.items.append(item)
        self.receives.tell_next()


def test_receives_are_told_one_at_a_time_in_order() -> None:
    source, told = Source(), list[str]()
    receives = [source.receives.add(note(told, name)) for name in "abc"]
    source.put(1)
    source.put(2)
    assert told == ["a"]
    assert receives[0].take() == 1
    assert told == ["a", "b"]
    assert receives[1].take() == 2
    assert told == ["a", "b"]
    assert len(source.receives) == 1


def test_a_receive_is_told_at_once_where_something_is_there() -> None:
    source, told = Source(), list[str]()
    source.put(1)
    assert source.receives.add(note(told, "a")).is_ready
    assert told == ["a"]


def test_a_receive_that_was_told_and_is_cancelled_leaves_its_message_to_the_next() -> (
    None
):
    source, told = Source(), list[str]()
    first, second = (source.receives.add(note(told, name)) for name in "ab")
    source.put(1)
    first.cancel()
    first.cancel()
    assert told == ["a", "b"]
    assert second.take() == 1
    second.cancel()
    assert len(source.receives) == 0


@pytest.mark.parametrize("is_told", [True, False])
def test_nothing_is_taken_before_it_is_there_or_twice(is_told: bool) -> None:
    source = Source()
    receive = source.receives.add(lambda: None)
    if is_told:
        source.put(1)
        receive.take()
    with pytest.raises(AssertionError):
        receive.take()


@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "add", "take", "cancel"]), st.integers(0, 5))
    )
)
def test_whatever_is_cancelled_everything_is_received_once_and_in_order(
    steps: list[tuple[str, int]],
) -> None:
    source, taken, open_receives = Source(), list[int](), list[Receive[int]]()
    num_put = 0
    for step, which in steps:
        if step == "put":
            source.put(num_put)
            num_put += 1
        elif step == "add":
            open_receives.append(source.receives.add(lambda: None))
        elif step == "cancel" and which < len(open_receives):
            open_receives.pop(which).cancel()
        elif step == "take":
            for receive in [r for r in open_receives if r.is_ready][:1]:
                open_receives.remove(receive)
                taken.append(receive.take())
        ready = sum(r.is_ready for r in open_receives)
        assert ready == (1 if open_receives and source.items else 0)
    assert [*taken, *source.items] == list(range(num_put))
    assert len(source.receives) == len(open_receives)


@given(st.text(st.characters()) | st.binary())
def test_the_size_of_a_message_is_that_of_its_bytes(message: str | bytes) -> None:
    data = (
        message
        if isinstance(message, bytes)
        else message.encode("utf-8", "surrogatepass")
    )
    assert message_bytes(message) == len(data)
