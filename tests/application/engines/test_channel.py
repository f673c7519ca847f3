from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pie_trio.application.engines.channel import Channel, ClosedError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    found = Channel(one), Channel(other)
    yield found
    for end in found:
        end.close()


def test_messages_of_any_size_come_whole_and_in_order(
    ends: tuple[Channel, Channel],
) -> None:
    here, there = ends
    sizes = [0, 1, 1 << 14, 1 << 17, 3, (1 << 22) + 1]
    sent = [np.arange(size, dtype=np.int32) for size in sizes]

    def send() -> None:
        for array in sent:
            here.send((array, "x", array))

    thread = threading.Thread(target=send)
    thread.start()
    deadline = time.monotonic() + 30
    for array in sent:
        first, text, second = there.receive(deadline=deadline)
        assert (first.tolist(), text) == (array.tolist(), "x")
        assert second.flags.writeable
        assert (second == array).all()
    thread.join()
    assert there.try_receive() is None


def test_small_messages_that_come_together_are_told_apart(
    ends: tuple[Channel, Channel],
) -> None:
    here, there = ends
    for number in range(50):
        here.send((number,))
    assert [there.receive() for _ in range(50)] == [(number,) for number in range(50)]


def test_waiting_ends_at_the_deadline(ends: tuple[Channel, Channel]) -> None:
    here, _ = ends
    with pytest.raises(TimeoutError):
        here.receive(deadline=time.monotonic())
    with pytest.raises(TimeoutError):  # nobody reads
        here.send(bytes(1 << 24), deadline=time.monotonic())


def test_who_is_gone_is_noticed(ends: tuple[Channel, Channel]) -> None:
    here, there = ends
    there.close()
    with pytest.raises(ClosedError):
        here.receive()
    with pytest.raises(ClosedError):
        here.send((1,))
    with pytest.raises(ClosedError):
        here.try_receive()
