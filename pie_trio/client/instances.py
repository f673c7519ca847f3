"""Instances on a server: a handle to one of them, and its events as they come."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from pie_trio.client.errors import BrokenConnectionError, InstanceFailedError
from pie_trio.client.events import End, Event, Failure, Outcome, Result
from pie_trio.client.records import LogLine, Logs, make_status
from pie_trio.client.transport import quoted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from pie_trio.client.records import InstanceStatus
    from pie_trio.client.transport import EventStream, Transport

__all__ = ["Instance", "Recorder", "Run", "encode_message"]


class Instance:
    """An instance on a server, by its id. Making one asks nothing.

    All methods raise:
        MissingError: There is no such instance, or it ended some time ago.

    Attributes:
        instance_id: Its id.
    """

    def __init__(self, transport: Transport, instance_id: str) -> None:
        self.instance_id = instance_id
        self._transport = transport
        self._path = f"/v1/instances/{quoted(instance_id)}"

    def __repr__(self) -> str:
        return f"<Instance {self.instance_id}>"

    async def status(self) -> InstanceStatus:
        """Return what it does, holds and has used."""
        return make_status(await self._transport.ask("GET", self._path))

    def attach(self, after: int = 0) -> Run:
        """Return its events, those that are kept first; leaving them does not end it.

        Args:
            after: Number of the event after which to begin.
        """
        path = f"{self._path}/events?after={after}"
        return Run(self._transport, lambda: self._transport.open_events("GET", path))

    async def send(self, *messages: str | bytes) -> None:
        """Send it messages, and wait until it has room for them.

        Raises:
            MissingError: It takes no more messages.
            OverloadedError: It had no room for half a minute.
        """
        body = {"messages": [encode_message(message) for message in messages]}
        await self._transport.ask("POST", f"{self._path}/messages", json_body=body)

    async def end_input(self) -> None:
        """Let it know that no more messages will come."""
        path = f"{self._path}/messages"
        await self._transport.ask("POST", path, json_body={"end": True})

    async def cancel(self) -> InstanceStatus:
        """End it, and wait until everything it held is free."""
        return make_status(await self._transport.ask("POST", f"{self._path}/cancel"))

    async def logs(self) -> Logs:
        """Return what is kept of its log."""
        answer = await self._transport.ask("GET", f"{self._path}/logs")
        lines = [
            LogLine(one["source"], one["text"], one["at"]) for one in answer["lines"]
        ]
        return Logs(lines, answer["lost"])

    @asynccontextmanager
    async def follow_logs(self) -> AsyncGenerator[AsyncIterator[Event]]:
        """Read its log up to its end for as long as the block is open.

        It iterates over :class:`Log`, and :class:`Lost` where lines are not kept any more.
        """
        path = f"{self._path}/logs?follow=1"
        stream = await self._transport.open_events("GET", path)
        async with stream:
            yield _Flattened(stream)


class Recorder:
    """Notes how an instance ends, from its events.

    Attributes:
        instance_id: Empty until it is known.
        outcome: None until it has ended.
    """

    def __init__(self, instance_id: str = "") -> None:
        self.instance_id = instance_id
        self.outcome: Outcome | None = None
        self._value: Any = None
        self._error: InstanceFailedError | None = None

    def note(self, event: Event) -> None:
        """Take the next event into account."""
        match event:
            case Result():
                self._value = event.value
            case Failure():
                self._error = event.error
            case End():
                data = event.data
                self.outcome = Outcome(
                    self.instance_id,
                    event.state,
                    self._value,
                    self._error,
                    float(data["seconds"]),
                    int(data["tokens_computed"]),
                    int(data["tokens_sampled"]),
                )
            case _:
                pass

    def check(self) -> None:
        """Raise if it has failed, or if the events stopped before its end."""
        if self.outcome is None:
            raise BrokenConnectionError(
                f"the stream of {self.instance_id or 'an instance'} was cut off: the server "
                "stopped, or the network did"
            )
        if self.outcome.error is not None:
            raise self.outcome.error


class Run:
    """The events of an instance, to iterate over once.

    The last event is :class:`End`; after it the iteration raises if the instance has failed.
    Whoever has launched the instance by this ends it by leaving: by an error in the loop, by
    cancellation, or at the end of the ``async with`` block. A plain ``async for`` that is left
    by ``break`` is closed when Python collects it, which is soon, but not at once.
    """

    def __init__(
        self, transport: Transport, open_stream: Callable[[], Awaitable[EventStream]]
    ) -> None:
        self._transport, self._open = transport, open_stream
        self._recorder = Recorder()
        self._stream: EventStream | None = None
        self._events: _Flattened | None = None

    @property
    def instance(self) -> Instance:
        """Handle to the instance, to send it messages for example."""
        assert self._stream is not None, "it is known once the block was entered"
        return Instance(self._transport, self._recorder.instance_id)

    @property
    def is_entered(self) -> bool:
        """Whether reading has begun."""
        return self._stream is not None

    @property
    def outcome(self) -> Outcome | None:
        """How the instance has ended; None before :class:`End` was read."""
        return self._recorder.outcome

    async def result(self) -> Any:
        """Read to the end, and return what the instance has returned.

        Raises:
            InstanceFailedError: It has failed, or was ended.
            BrokenConnectionError: The connection has ended before it did.
        """
        if self._stream is None:
            async with self:
                return await self.result()
        async for _event in self:
            pass
        assert self.outcome is not None, "else the iteration has raised"
        return self.outcome.value

    async def __aenter__(self) -> Self:
        if self._stream is not None:
            raise RuntimeError(
                "these events were read already: make another run, or attach again"
            )
        self._stream = await self._open()
        self._recorder.instance_id = self._stream.instance_id
        self._events = _Flattened(self._stream)
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._stream is not None, "it was entered"
        await self._stream.__aexit__(*error)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self if self._stream is not None else self._iterate()

    async def __anext__(self) -> Event:
        assert self._events is not None, "an iteration has begun"
        event = await anext(self._events, None)
        if event is None:
            self._recorder.check()
            raise StopAsyncIteration
        self._recorder.note(event)
        return event

    async def _iterate(self) -> AsyncGenerator[Event]:
        async with self:
            while True:
                try:
                    event = await anext(self)
                except StopAsyncIteration:
                    return
                yield event


class _Flattened:
    """The events of a stream one by one."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._batch: list[Event] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if not self._batch:
            batch = await self._stream.next_batch()
            if batch is None:
                raise StopAsyncIteration
            self._batch = batch[::-1]
        return self._batch.pop()


def encode_message(message: str | bytes) -> dict[str, str]:
    """Return a message as JSON can carry it."""
    if isinstance(message, str):
        return {"text": message}
    return {"binary": base64.b64encode(message).decode()}
