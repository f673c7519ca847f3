"""One connection: reads it, within its deadlines, and ends it in order."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio
from hypercorn.events import Closed, Event, RawData, Updated

from pie_trio.application.web.problems import RefusedError
from pie_trio.application.web.shell.framing import Framing, Phase
from pie_trio.application.web.shell.protocol import Peer, Protocol
from pie_trio.application.web.shell.websocket_stream import WebSocketStream
from pie_trio.application.web.shell.writer import Writer

if TYPE_CHECKING:
    from pie_trio.application.web.shell.shared import Shared

__all__ = ["Connection"]

READ_BYTES = 64 << 10
GOING_AWAY = 1001

logger = logging.getLogger(__name__)


class Connection:
    """Serves requests until either side ends.

    When the client ends its side, even only its sending side, or is gone, the handler of the
    request under way is cancelled at once, and what it had sent before is dropped.

    Args:
        stream: To the client; TLS has shaken hands.
        shared: What all connections share.
        peer: The other side.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        shared: Shared,
        peer: Peer,
    ) -> None:
        self._stream, self._shared, self._peer = stream, shared, peer
        self._config = shared.config
        self._framing = Framing(shared.config)
        self._writer = Writer(stream, shared.config.stall_seconds, self.abort)
        self._all = trio.CancelScope()  # cancelled: there is nobody to talk to any more
        self._reading = trio.CancelScope()  # cancelled: nothing more is to be read
        self._is_receiving = False
        self._is_closing = False
        self._may_go_on = trio.Event()
        self._idle_since = self._heard_at = trio.current_time()
        self._head_began: float | None = self._idle_since
        self._protocol: Protocol | None = None

    async def run(self) -> None:
        """Serve, and return when it is closed and no handler runs any more."""
        try:
            with self._all:
                async with trio.open_nursery() as nursery:
                    self._writer.start(nursery)
                    self._protocol = Protocol(
                        self._shared,
                        self._peer,
                        framing=self._framing,
                        writer=self._writer,
                        nursery=nursery,
                        send=self._take_event,
                        on_accepted=self._switch_protocol,
                        is_silent_since=self._is_silent_since,
                        on_silent=self.abort,
                    )
                    await self._read(self._protocol)
                    await self._finish()
                    nursery.cancel_scope.cancel()
        except* Exception as group:
            logger.error("a connection failed", exc_info=group)

    def abort(self) -> None:
        """End now: the client is gone. Again does nothing."""
        if self._protocol is not None:
            self._protocol.cancel()
        self._all.cancel()

    def drain(self) -> None:
        """End when the request under way is answered; at once if there is none."""
        if self._protocol is None or self._protocol.current is None:
            self._close()

    async def stop(self) -> None:
        """Cancel the request under way, then end; a WebSocket hears that the server goes."""
        if self._protocol is not None:
            current = self._protocol.current
            if isinstance(current, WebSocketStream):
                await current.close(GOING_AWAY, "the server stops")
            self._protocol.cancel()
        self._close()

    async def _read(self, protocol: Protocol) -> None:
        """Pass on what comes; return when nothing more is to be read."""
        try:
            with self._reading:
                while not self._is_closing:
                    self._is_receiving = True
                    self._set_deadline()
                    data = await self._stream.receive_some(READ_BYTES)
                    self._is_receiving = False
                    self._reading.deadline = math.inf
                    if not data:
                        self.abort()
                        return
                    self._heard_at = trio.current_time()
                    self._framing.feed(data)
                    await self._pass_on(protocol)
            if not self._is_closing:
                await self._time_out(protocol)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.abort()
        except RefusedError as error:
            await protocol.refuse(error)
            self._close()

    async def _pass_on(self, protocol: Protocol) -> None:
        if self._head_began is None and self._framing.phase is Phase.HEAD:
            self._head_began = self._heard_at
        while True:
            while self._framing.is_held:
                self._may_go_on = trio.Event()
                await self._may_go_on.wait()
            if not (piece := self._framing.take()):
                return
            self._head_began = None
            await protocol.handle(RawData(data=piece))
            await self._writer.flush()

    async def _time_out(self, protocol: Protocol) -> None:
        """Say what did not come in time, where anybody waits for an answer."""
        match self._framing.phase:
            case Phase.HEAD if self._framing.is_between_requests:
                pass
            case Phase.HEAD:
                await protocol.refuse(
                    RefusedError(408, "the request's head came too slowly")
                )
            case _:
                await protocol.refuse(
                    RefusedError(408, "the request's body came too slowly")
                )
        self._close()

    def _set_deadline(self) -> None:
        """Say until when bytes must come, while they are waited for."""
        if not self._is_receiving:
            return
        config, now = self._config, trio.current_time()
        match self._framing.phase:
            case Phase.HEAD if self._head_began is not None:
                deadline = self._head_began + config.header_seconds
            case Phase.HEAD:
                deadline = self._idle_since + config.keep_alive_seconds
            case Phase.BODY | Phase.CHUNKS:
                deadline = now + config.body_seconds
            case _:
                deadline = math.inf
        self._reading.deadline = deadline

    async def _take_event(self, event: Event) -> None:
        """Take what the protocol says to its connection; nothing here waits."""
        if isinstance(event, RawData):
            self._writer.write(event.data)
        elif isinstance(event, Closed):
            self._close()
        elif isinstance(event, Updated) and event.idle:
            self._framing.begin_next()
            self._idle_since = trio.current_time()
            if self._framing.num_held:
                self._head_began = self._idle_since
            self._go_on()

    def _switch_protocol(self) -> None:
        self._framing.switch_protocol()
        self._go_on()

    def _go_on(self) -> None:
        self._may_go_on.set()
        self._set_deadline()

    def _is_silent_since(self, time: float) -> bool:
        return self._is_receiving and self._heard_at < time

    def _close(self) -> None:
        self._is_closing = True
        self._reading.cancel()

    async def _finish(self) -> None:
        """Let the client read what it was sent.

        Closing while there are bytes that nobody has read would tell its system to drop them.
        """
        with trio.move_on_after(self._config.close_seconds):
            await self._writer.flush()
            if self._writer.is_broken:
                return
            try:
                if isinstance(self._stream, trio.abc.HalfCloseableStream):
                    await self._stream.send_eof()
                    while await self._stream.receive_some(READ_BYTES):
                        pass
                else:
                    await self._stream.aclose()
            except trio.BrokenResourceError:  # it has left meanwhile: it wants no more
                self.abort()
