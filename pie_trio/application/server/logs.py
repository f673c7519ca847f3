"""The log of an instance as a stream that follows it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pie_trio.application.server.running import RunningInstance

__all__ = ["stream_lines"]


async def stream_lines(
    instance: RunningInstance, *, heartbeat_seconds: float
) -> AsyncGenerator[bytes]:
    """Yield the lines that are kept, then each as it comes, up to the instance's end.

    Events of SSE: ``log`` with ``source``, ``text`` and ``at``, and ``lost`` with how many
    lines are not kept any more. A client that reads too slowly loses the oldest.
    """
    num_seen = 0
    while True:
        log = instance.log
        num_written = log.num_dropped + len(log.lines)
        if num_seen < num_written:
            parts = list[str]()
            if num_seen < log.num_dropped:
                parts.append(_encode("lost", {"lines": log.num_dropped - num_seen}))
                num_seen = log.num_dropped
            skip = num_seen - log.num_dropped
            parts += [
                _encode(
                    "log", {"source": line.source, "text": line.text, "at": line.at}
                )
                for line in list(log.lines)[skip:]
            ]
            num_seen = num_written
            yield "".join(parts).encode("utf-8", "replace")
        elif instance.state != "running":
            return
        else:
            with trio.move_on_after(heartbeat_seconds) as beat:
                await instance.wait_line()
            if beat.cancelled_caught:
                yield b": keep-alive\n\n"


def _encode(kind: str, fields: dict[str, object]) -> str:
    return f"event: {kind}\ndata: {json.dumps(fields, ensure_ascii=False)}\n\n"
