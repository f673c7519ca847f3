"""The text of a decode stream on its way to the client, without a guest in between.

A guest that only sends what it reads costs a turn of its own for each token. Here a piece goes
into the outbox as soon as it was sampled. A guest that waits for the end of a stream is
not woken before either: what is read is kept for it, and sent to nobody.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pie_trio.control.stream_output import Unread
from pie_trio.errors import LimitError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.control.outbox import Message, Outbox
    from pie_trio.control.stream_output import FinishReason
    from pie_trio.control.streams import DecodeStream

__all__ = ["Envelope", "Relay", "make_message"]

Envelope = tuple[str, str]
"""What stands before and after a piece of text; the WIT record ``envelope``."""


class Relay:
    """Reads a stream and sends its text, or keeps it only, until either ends.

    Args:
        stream: Which nobody else reads.
        outbox: Where to; while it is full, the stream is not read. None to send nothing.
        envelope: Around each piece.
        on_done: Gets this relay once the stream has ended and everything was sent, or why a
            piece could not be sent.
    """

    def __init__(
        self,
        stream: DecodeStream,
        outbox: Outbox | None,
        envelope: Envelope | None,
        on_done: Callable[[Relay | LimitError], None],
    ) -> None:
        self.stream, self._outbox, self._envelope = stream, outbox, envelope
        self._on_done = on_done
        self._is_over = self._has_failed = False
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        self._logprobs: list[float] = []
        self._finish: FinishReason | None = None

    @property
    def num_written(self) -> int:
        """See :attr:`DecodeStream.num_written`."""
        return self.stream.num_written

    def start(self) -> None:
        """Begin to read."""
        self.stream.when_readable(self._pass_on)

    def end(self) -> None:
        """Leave the stream to another reader. Again does nothing."""
        if not self._is_over:
            self._is_over = True
            self.stream.forget_reader()

    def take(self) -> Unread:
        """Return all that was read since the last time.

        Raises:
            Exception: What the stream has failed with before anything was read.
        """
        if self._has_failed and not self._token_ids:
            return self.stream.take()
        found = Unread(
            self._token_ids, "".join(self._pieces), self._logprobs, self._finish
        )
        self._token_ids, self._pieces, self._logprobs = [], [], []
        self._finish = None
        return found

    def _pass_on(self) -> None:
        stream = self.stream
        if stream.has_failed:  # which is left to whoever takes what there is
            self._has_failed = True
            self._complete(self)
            return
        unread = stream.take()
        self._token_ids += unread.token_ids
        self._logprobs += unread.logprobs
        self._finish = unread.finish
        if unread.text:
            self._pieces.append(unread.text)
            if self._outbox is not None:
                message = make_message(unread.text, self._envelope)
                if not self._outbox.put(message):
                    self._wait_for_room(self._outbox, message)
                    return
        self._go_on()

    def _wait_for_room(self, outbox: Outbox, message: Message) -> None:
        try:
            outbox.check_late(message)
        except LimitError as error:
            self._complete(error)
            return
        # Once this was promised it is sent, also if the relay is ended meanwhile.
        outbox.put_late(message, self._go_on)

    def _go_on(self) -> None:
        if self._is_over:
            return
        if self._finish is not None:
            self._complete(self)
        else:
            self.stream.when_readable(self._pass_on)

    def _complete(self, outcome: Relay | LimitError) -> None:
        self._is_over = True
        self._on_done(outcome)


def make_message(text: str, envelope: Envelope | None) -> Message:
    """Return the message that carries a piece of text."""
    if envelope is None:
        return text
    before, after = envelope
    return f"{before}{json.dumps(text)}{after}".encode()
