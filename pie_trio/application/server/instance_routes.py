"""``/v1/instances``: launch programs, follow what they send, send to them, end them."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

import trio
from quart import request

from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.logs import stream_lines
from pie_trio.application.server.owners import authorize
from pie_trio.application.server.streams import answer_events, wants_json
from pie_trio.application.web import make_event_stream
from pie_trio.errors import BadArgumentError, LimitError, NotFoundError

if TYPE_CHECKING:
    from quart.wrappers import Response

    from pie_trio.application.server.running import RunningInstance
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp
    from pie_trio.control.outbox import Message

__all__ = ["add_instance_routes", "read_message"]


def add_instance_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes."""
    limits = state.registry.limits

    def find(instance_id: str) -> RunningInstance:
        return state.registry.get(instance_id, owner=authorize(request, "launch"))

    async def launch_any() -> Response:
        return await launch(await request.get_json(force=True))

    async def run_program(name: str) -> Response:
        body = await request.get_data()
        arguments: object = await request.get_json(force=True) if body else {}
        is_detached = request.args.get("detach", "") in ("1", "true")
        return await launch(
            {"program": name, "arguments": arguments, "detach": is_detached}
        )

    async def launch(asked: object) -> Response:
        instance = await state.launch(asked, owner=authorize(request, "launch"))
        if instance.is_detached and wants_json(request):
            place = {"location": f"/v1/instances/{instance.instance_id}"}
            return answer_json(instance.status(), 202, place)
        return await answer_events(request, instance.attach(), limits)

    async def list_instances() -> Response:
        found = state.registry.list(owner=authorize(request, "launch"))
        return answer_json({"instances": [instance.status() for instance in found]})

    async def get_instance(instance_id: str) -> Response:
        return answer_json(find(instance_id).status())

    async def get_events(instance_id: str) -> Response:
        instance = find(instance_id)
        after = _number(
            request.args.get("after") or request.headers.get("last-event-id") or "0"
        )
        return await answer_events(request, instance.attach(after), limits)

    async def get_logs(instance_id: str) -> Response:
        instance = find(instance_id)
        if request.args.get("follow", "") in ("1", "true"):
            beat = limits.heartbeat_seconds
            return make_event_stream(stream_lines(instance, heartbeat_seconds=beat))
        lines = [
            {"source": line.source, "text": line.text, "at": line.at}
            for line in instance.log.lines
        ]
        return answer_json({"lines": lines, "lost": instance.log.num_dropped})

    async def post_message(instance_id: str) -> Response:
        instance = find(instance_id)
        messages, is_end = await _read_messages()
        num_taken = 0
        with trio.move_on_after(limits.send_seconds) as deadline:
            for message in messages:
                if not await instance.send(message):
                    raise NotFoundError(
                        f"{instance_id} takes no more messages: it has ended, or its input "
                        f"has; it took {num_taken} of these {len(messages)}"
                    )
                num_taken += 1
        if deadline.cancelled_caught:
            raise LimitError(
                f"{instance_id} has not received what was sent to it before, and has no "
                f"room: it took {num_taken} of these {len(messages)} messages"
            )
        if is_end:
            instance.end_input()
        return answer_json({"taken": num_taken}, 202)

    async def cancel(instance_id: str) -> Response:
        instance = find(instance_id)
        instance.cancel()
        await instance.wait_ended_running()
        return answer_json(instance.status())

    async def kill(instance_id: str) -> Response:
        instance = find(instance_id)
        instance.kill()
        await instance.wait_ended_running()
        return answer_json(instance.status())

    one = "/v1/instances/<instance_id>"
    for path, view, method in (
        ("/v1/instances", launch_any, "POST"),
        ("/v1/programs/<name>/run", run_program, "POST"),
        ("/v1/instances", list_instances, "GET"),
        (one, get_instance, "GET"),
        (f"{one}/events", get_events, "GET"),
        (f"{one}/logs", get_logs, "GET"),
        (f"{one}/messages", post_message, "POST"),
        (f"{one}/cancel", cancel, "POST"),
        (f"{one}/kill", kill, "POST"),
    ):
        app.add_url_rule(path, view_func=view, methods=[method])


async def _read_messages() -> tuple[list[Message], bool]:
    """Return the messages in a request's body, and whether they are the last."""
    kind = request.mimetype
    if kind == "application/octet-stream":
        data = await request.get_data()
        assert isinstance(data, bytes), "it was not asked for as text"
        return [data], False
    if kind == "text/plain":
        text = await request.get_data()
        assert isinstance(text, bytes), "it was not asked for as text"
        try:
            return [text.decode()], False
        except UnicodeDecodeError as error:
            raise BadArgumentError(
                "the body is not UTF-8: send it as application/octet-stream"
            ) from error
    fields: object = await request.get_json(force=True)
    if not isinstance(fields, dict):
        raise BadArgumentError('the body must be a JSON object, as {"text": "hello"}')
    found: dict[str, Any] = fields  # pyright: ignore[reportUnknownVariableType]
    several: Any = found.get("messages", [])
    if not isinstance(several, list):
        raise BadArgumentError("messages must be a list")
    given: list[Any] = several  # pyright: ignore[reportUnknownVariableType]
    messages = [read_message(one) for one in given]
    if "text" in found or "binary" in found:
        messages.append(read_message(found))
    is_end = found.get("end", False) is True
    if not messages and not is_end:
        raise BadArgumentError(
            'there is nothing to send: give {"text": …}, {"binary": base 64}, {"messages": '
            '[…]} or {"end": true}'
        )
    return messages, is_end


def read_message(fields: object) -> Message:
    """Return the message in ``{"text": …}`` or ``{"binary": base 64}``.

    Raises:
        BadArgumentError: There is none.
    """
    match fields:
        case {"text": str(text)}:
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise BadArgumentError(
                    "text has half of a surrogate pair: send it as binary"
                ) from error
            return text
        case {"binary": str(encoded)}:
            try:
                return base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError) as error:
                raise BadArgumentError(f"binary is no base 64: {error}") from error
        case _:
            raise BadArgumentError(
                'a message is {"text": "…"} or {"binary": "base 64"}'
            )


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadArgumentError(f"expected the number of an event, got {text[:40]!r}")
    return int(text)
