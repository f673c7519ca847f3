"""What is sent: in order, whole, and by turns with the others."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import memory_stream_pair

from pie_trio.application.web.shell.writer import Writer
from tests.application.web.servers import LONG_SECONDS, TIME_LIMIT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trio.testing import MockClock


@asynccontextmanager
async def open_writer(
    stream: trio.abc.Stream, stall_seconds: float = LONG_SECONDS
) -> AsyncGenerator[tuple[Writer, list[str]]]:
    """A writer, and a list that says when it breaks."""
    broken = list[str]()
    async with trio.open_nursery() as nursery:
        writer = Writer(stream, stall_seconds, lambda: broken.append("broken"))
        writer.start(nursery)
        yield writer, broken
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def socket_pair() -> AsyncGenerator[tuple[trio.SocketStream, trio.SocketStream]]:
    with trio.fail_after(TIME_LIMIT_SECONDS):
        ours, theirs = (trio.SocketStream(s) for s in trio.socket.socketpair())
        async with ours, theirs:
            yield ours, theirs


async def test_a_sender_whose_socket_is_always_ready_lets_others_run() -> None:
    others_ran = False

    async def other() -> None:
        nonlocal others_ran
        others_ran = True

    async with socket_pair() as (ours, _), open_writer(ours) as (writer, _):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(16):
                writer.write(b"x")
                await writer.flush()
            assert others_ran
            nursery.cancel_scope.cancel()


async def test_a_sender_whose_socket_is_always_ready_can_be_cancelled() -> None:
    async with socket_pair() as (ours, _), open_writer(ours) as (writer, _):
        with trio.CancelScope() as scope:
            scope.cancel()
            for _ in range(16):
                writer.write(b"x")
                await writer.flush()
        assert scope.cancelled_caught


async def test_a_cancelled_sender_leaves_no_half_of_its_message() -> None:
    message = b"x" * 3_000_000
    async with socket_pair() as (ours, theirs), open_writer(ours) as (writer, _):
        with trio.CancelScope() as scope:
            writer.write(message + b"first")
            scope.cancel()
            await writer.flush()
        writer.write(b"second")
        received = b""
        while not received.endswith(b"second"):
            received += await theirs.receive_some()
        assert received == message + b"firstsecond"


@settings(max_examples=30)
@given(
    writes=st.lists(
        st.tuples(st.integers(0, 200_000), st.booleans(), st.booleans()), max_size=10
    )
)
async def test_everything_arrives_in_order(
    writes: list[tuple[int, bool, bool]],
) -> None:
    pieces = [bytes([number]) * size for number, (size, _, _) in enumerate(writes)]
    received = bytearray()

    async with socket_pair() as (ours, theirs), open_writer(ours) as (writer, broken):

        async def write() -> None:
            for piece, (_, is_corked, flushes) in zip(pieces, writes, strict=True):
                if is_corked:
                    with writer.corked():
                        writer.write(piece)
                        await writer.flush()
                else:
                    writer.write(piece)
                if flushes:
                    await writer.flush()
            await writer.flush()
            await ours.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            while more := await theirs.receive_some():
                received += more
    assert bytes(received) == b"".join(pieces)
    assert not broken


async def test_a_peer_that_is_gone_is_noticed_once() -> None:
    async with socket_pair() as (ours, theirs), open_writer(ours) as (writer, broken):
        await theirs.aclose()
        for _ in range(5):
            writer.write(b"x")
            await writer.flush()
        assert broken == ["broken"]
        assert writer.is_broken


async def test_a_peer_must_take_some_in_time(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    taken = 0

    async def block() -> None:
        await trio.sleep_forever()

    async def take() -> None:
        nonlocal taken
        for _ in range(10):
            await trio.sleep(9)
            taken += len(await theirs.receive_some())
        ours.send_stream.send_all_hook = block

    async with open_writer(ours, stall_seconds=10) as (writer, broken):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            while not broken:
                writer.write(b"x" * 1000)
                await writer.flush()
                await trio.sleep(1)
        assert taken > 0
        assert trio.current_time() == pytest.approx(90 + 10, abs=2)
