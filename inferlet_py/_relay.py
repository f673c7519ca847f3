"""What a generation sends to the client as it comes, or waits for as a whole."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from inferlet_py._errors import HostError
from inferlet_py._messages import send

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from inferlet_py._generation import Chunk
    from inferlet_py._host import ChunkValues, Envelope
    from inferlet_py._streams import HostStream

__all__ = ["Relay"]


class Relay:
    """What goes to the client as it comes, or is waited for to the end.

    Args:
        fields: Of the JSON objects that carry the text; None for bare text.
        on_cut: Takes what was relayed until the wait for it was given up.
        sends: Without, nothing goes to the client.

    Attributes:
        envelope: Around each piece.
        has_sent: The host has sent the text of the latest chunk.
        cut_text: What the wait was given up for; whoever goes on takes it.
    """

    def __init__(
        self,
        fields: Mapping[str, object] | None,
        on_cut: Callable[[ChunkValues], Chunk],
        *,
        sends: bool = True,
    ) -> None:
        self._on_cut, self.sends = on_cut, sends
        self.cut_text = ""
        self.has_sent = False
        self.envelope: Envelope | None = None
        if fields is not None:
            around = json.dumps({**fields, "text": ""})
            end = len(around) - len('""}')
            self.envelope = around[:end], "}"

    def cut(self, stream: HostStream) -> bool:
        """Take what came until the wait for it was given up; say whether that was anything."""
        try:
            values = stream.end_relay()
        except HostError:
            return False  # the stream has failed before
        if values[0]:
            self.cut_text += self._on_cut(values).text
        return bool(values[0])

    async def read(self, stream: HostStream) -> ChunkValues:
        """Wait for the end of a stream."""
        if self.sends:
            return await stream.relay(self.envelope)
        return await stream.collect()

    async def send(self, text: str) -> None:
        """Send a piece from here."""
        if self.envelope is None:
            await send(text)
        else:
            before, after = self.envelope
            await send(f"{before}{json.dumps(text)}{after}".encode())
