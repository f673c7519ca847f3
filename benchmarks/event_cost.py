"""What an event costs between an instance's log and the socket, without an engine and guests.

    python -m benchmarks.event_cost --streams 32 --steps 300 --rounds 5

In each step every stream gets one event, and what the thread of the server computes until all have
left is divided by their number. The clients are a process of their own. Kinds: the events of pie's own
routes, and chunks of OpenAI's completions and chats. To compare two versions, let them take turns.
"""

from __future__ import annotations

import json
import selectors
import socket
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any, cast

import trio
from quart import request

from benchmarks.harness import describe_machine, make_parser, spread
from pie_trio.application.openai.answering import AnswerFeed
from pie_trio.application.openai.chat_answer import ChatAnswer
from pie_trio.application.openai.completion_answer import CompletionAnswer
from pie_trio.application.openai.requests import read_chat, read_completion
from pie_trio.application.server.events import EventLog
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.running import EventReader
from pie_trio.application.server.streams import answer_events
from pie_trio.application.web import make_app, make_feed_stream
from pie_trio.application.web.shell import (
    ShellConfig,
    open_listeners,
    parse_address,
    serve,
)

if TYPE_CHECKING:
    import argparse

    from quart.wrappers import Response

    from pie_trio.application.openai.answer import Answer
    from pie_trio.application.server.running import RunningInstance
    from pie_trio.control.outbox import Message

KINDS = ("events", "completions", "chats")
LIMITS = ServerLimits()
PAUSE_SECONDS = 0.0005
NO_TEXTS: Any = None  # log-probabilities alone need the texts of tokens
CLIENTS = "--be-clients"


class Instance:
    """What a reader needs of an instance."""

    def __init__(self) -> None:
        self.instance_id, self.program = "bench", "bench"
        self.is_attached, self.is_detached = trio.Event(), False
        self.events = EventLog(max_events=1000, max_bytes=1 << 20)
        self.events.hold(0)

    def cancel(self, _reason: str) -> None:
        """Do nothing: nothing runs."""


def main() -> None:
    if sys.argv[1:2] == [CLIENTS]:
        be_clients(int(sys.argv[2]), int(sys.argv[3]))
        return
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine())
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind in KINDS:
            found[kind].append(trio.run(measure, kind, options))
    for kind, values in found.items():
        print(
            f"  {kind:12s} us an event: {spread(values)}, at the best {min(values):.1f}"
        )


async def measure(kind: str, options: argparse.Namespace) -> float:
    """Return microseconds of the processor for an event, of the median step."""
    count: int = options.streams
    instances = [Instance() for _ in range(count)]
    app = make_app("bench")

    async def view(index: str) -> Response:
        reader = EventReader(cast("RunningInstance", instances[int(index)]), 0)
        if kind == "events":
            return await answer_events(request, reader, LIMITS)
        feed = AnswerFeed(reader, make_answer(kind))
        return make_feed_stream(feed, LIMITS.heartbeat_seconds)

    app.add_url_rule("/<index>", view_func=view)
    seconds: list[float] = []
    async with (
        open_listeners([parse_address("127.0.0.1:0")]) as listeners,
        trio.open_nursery() as nursery,
    ):
        shutdown = trio.Event()

        async def run(*, task_status: trio.TaskStatus[list[str]]) -> None:
            await serve(
                app,
                listeners,
                ShellConfig(),
                shutdown=shutdown,
                task_status=task_status,
            )

        urls: list[str] = await nursery.start(run)
        port = urls[0].rpartition(":")[2]
        clients = await trio.lowlevel.open_process(
            [sys.executable, "-m", "benchmarks.event_cost", CLIENTS, str(count), port]
        )
        for instance in instances:
            await instance.is_attached.wait()
        for step in range(options.steps):
            message = make_message(kind, f" word{step}")
            began = time.thread_time()
            for instance in instances:
                instance.events.append("message", message)
            await trio.sleep(PAUSE_SECONDS)
            seconds.append(time.thread_time() - began)
        for instance in instances:
            end = {"state": "succeeded", "tokens_computed": 1, "tokens_sampled": 1}
            instance.events.append("end", end)
            instance.events.close()
        await clients.wait()
        nursery.cancel_scope.cancel()
    return statistics.median(seconds) / count * 1e6


def make_answer(kind: str) -> Answer:
    """Return the answer to a request for a stream."""
    body: dict[str, Any] = {"model": "m", "stream": True}
    if kind == "completions":
        body["prompt"] = "a"
        return CompletionAnswer(read_completion(body), body, NO_TEXTS)
    body["messages"] = [{"role": "user", "content": "a"}]
    return ChatAnswer(read_chat(body), body, NO_TEXTS)


def make_message(kind: str, text: str) -> Message:
    """Return what a program sends for a piece of text."""
    if kind == "events":
        return text
    return json.dumps({"choice": 0, "text": text}).encode()


def be_clients(count: int, port: int) -> None:
    """Read streams to their ends."""
    selector = selectors.DefaultSelector()
    for index in range(count):
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % index)
        selector.register(client, selectors.EVENT_READ)
    while selector.get_map():
        for key, _ in selector.select():
            client = cast("socket.socket", key.fileobj)
            data = client.recv(1 << 16)
            if not data or data.endswith(b"0\r\n\r\n"):
                selector.unregister(client)
                client.close()


if __name__ == "__main__":
    main()
