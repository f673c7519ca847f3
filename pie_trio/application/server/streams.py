"""Events of an instance as answers: server-sent events, or one JSON document."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.events import event_fields
from pie_trio.application.server.failures import TooLargeError
from pie_trio.application.web import make_feed_stream

if TYPE_CHECKING:
    from quart.wrappers import Request, Response

    from pie_trio.application.server.events import Batch, Event
    from pie_trio.application.server.limits import ServerLimits
    from pie_trio.application.server.running import EventReader

__all__ = ["answer_events", "encode_event", "wants_json"]

# Made once: json.dumps makes one at each call that has options.
_to_json = json.JSONEncoder(ensure_ascii=False).encode


def wants_json(request: Request) -> bool:
    """Say whether a client would rather have JSON than server-sent events."""
    accepted = request.accept_mimetypes
    best = accepted.best_match(
        ["text/event-stream", "application/json"], "text/event-stream"
    )
    return best == "application/json"


async def answer_events(
    request: Request, reader: EventReader, limits: ServerLimits
) -> Response:
    """Answer with all events of an instance, up to its end.

    Args:
        request: Says in which form.
        reader: Used up.
        limits: Of the events in one document, and of the silence in a stream.

    Raises:
        TooLargeError: They are larger; the instance is cancelled.
    """
    if wants_json(request):
        return answer_json(await _collect(reader, limits.max_answer_bytes))
    response = make_feed_stream(_EventFeed(reader), limits.heartbeat_seconds)
    response.headers["x-instance-id"] = reader.instance.instance_id
    return response


class _EventFeed:
    """The events of an instance as server-sent events."""

    def __init__(self, reader: EventReader) -> None:
        self._reader = reader

    def __enter__(self) -> Self:
        self._reader.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._reader.__exit__(*failure)

    def take(self) -> bytes | None:
        """Return all events that are there."""
        if (batch := self._reader.take()) is not None:
            return _encode_batch(batch)
        return None if self._reader.is_over else b""

    async def wait(self) -> None:
        """Wait for more."""
        await self._reader.wait()


def _encode_batch(batch: Batch) -> bytes:
    lost = (
        f"event: lost\ndata: {json.dumps({'events': batch.num_lost})}\n\n"
        if batch.num_lost
        else ""
    )
    return (lost + "".join(map(encode_event, batch.events))).encode("utf-8", "replace")


def encode_event(event: Event) -> str:
    """Return an event as a server-sent one."""
    data = event.data
    if isinstance(data, str):
        told = f'{{"text": {_to_json(data)}}}'
    else:
        told = _to_json(event_fields(event))
    return f"id: {event.number}\nevent: {event.kind}\ndata: {told}\n\n"


async def _collect(reader: EventReader, max_bytes: int) -> dict[str, Any]:
    """Return what an instance has told in all."""
    answer: dict[str, Any] = {"id": reader.instance.instance_id}
    messages, lines = list[dict[str, Any]](), list[dict[str, Any]]()
    num_bytes = 0
    with reader:
        async for batch in reader:
            for event in batch.events:
                fields = event_fields(event)
                num_bytes += event.size
                match event.kind:
                    case "message":
                        messages.append(fields)
                    case "log":
                        lines.append(fields)
                    case "result":
                        answer["result"] = fields["value"]
                    case "error":
                        answer["error"] = fields
                    case "end":
                        answer |= fields
                    case "started":
                        answer["program"] = fields["program"]
                    case "receiving":
                        pass
            if num_bytes > max_bytes:
                raise TooLargeError(
                    f"{reader.instance.instance_id} has sent more than {max_bytes} bytes, "
                    "too many for one answer: accept text/event-stream instead"
                )
    return answer | {"messages": messages, "log": lines, "lost": reader.num_lost}
