"""The mixed load of :mod:`benchmarks.soak`: what clients and programs do, well-behaved and not.

Each kind of work is an asynchronous function that does one thing and returns how it ended, in a
word. What may come of it is said beside it in ``WORKS``; everything else is an error of the server.
"""

from __future__ import annotations

import io
import json
import math
import random
import socket
import statistics
import zipfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.client import Client, End, Message
from pie_trio.client.errors import RefusedError, RemoteError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["PROGRAMS", "WORKS", "Load", "Tally"]

WORK_SECONDS = 60.0
"""Most of one piece of work; longer is an error."""
MAX_THINK_SECONDS = 0.3
SHARED, OWN = list(range(300, 364)), list(range(400, 432))
PROMPTS = (
    "The old dog",
    "Once upon a time there was a king who",
    "In the morning the children went to the river, and",
    "A list of colours: red,",
)
HEAD = "from inferlet_py import *\n\n@inferlet\nasync def main({parameters}):\n"


def program(body: str, parameters: str = "") -> str:
    """Return the source of a program."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    return HEAD.format(parameters=parameters) + lines


PROGRAMS = {
    "talk": program(
        "async for message in messages():\n"
        "    async with Context() as context:\n"
        "        await context.fill(message)\n"
        "        async for chunk in context.generate(max_tokens=8):\n"
        "            await send(chunk.text)\n"
        "    await send('')\n"
    ),
    "flood": program(
        "for number in range(2000):\n    await send(f'{number} ' + 'x' * 2000)"
    ),
    "family": program(
        "if depth == 0:\n"
        "    await store.set(f'key-{number % 50}', b'x' * 1000)\n"
        "    broadcast('news', 'here')\n"
        "    return 1\n"
        "async with subscribe('news'), open_nursery() as nursery:\n"
        "    for _ in range(2):\n"
        "        nursery.start_soon(one, number, depth - 1)\n"
        "return len(await store.list_keys('key-'))\n",
        "number: int, depth: int = 1",
    )
    + (
        "\nasync def one(number, depth):\n"
        "    async with spawn(number=number, depth=depth) as child:\n"
        "        await child.wait()\n"
    ),
    "exports": program(
        "return [[e.name, e.num_pages] for e in Queue().list_exports()]"
    ),
    "lengths": program(
        "for length in (*range(1, 33), *range(36, 513, 4)):\n"
        "    async with Context() as context:\n"
        "        rows = range(max(0, length - 16), length)\n"
        "        await context.forward([5] * length, outputs=[Output(rows, top=1)])\n"
    ),
    "raises": program("print('a line')\n1 / 0"),
    "spins": program("while True: pass"),
    "grows": program("kept = []\nwhile True: kept.append(bytes(10_000_000))"),
    "prints": program("while True: print('x' * 1000)"),
    "hoards": program("queue = Queue()\nwhile True: queue.alloc_kvpages(4096)"),
    "recurses": program("def f(n): return f(n + 1) + f(n + 2)\nf(0)"),
    "streams": program(
        "async with Context() as context:\n"
        "    context.append([5, 6, 7])\n"
        "    stream = context.generate(max_tokens=10000, stop_tokens=[])\n"
        "    await stream.__anext__()\n"
        "    await receive()\n"
    ),
}
ENDLESS = ("spins", "prints", "streams")
FAILING = ("raises", "grows", "hoards", "recurses")


@dataclass(slots=True)
class Tally:
    """What came of one kind of work.

    Attributes:
        outcomes: How often it ended how.
        unexpected: Outcomes of these that should not be, with an example each.
        seconds: When it ended, counted from the start, and how long it took, where it was ok.
    """

    outcomes: Counter[str] = field(default_factory=Counter[str])
    unexpected: dict[str, str] = field(default_factory=dict[str, str])
    seconds: list[tuple[float, float]] = field(
        default_factory=list[tuple[float, float]]
    )

    def quantile(self, share: float) -> float:
        """Return a quantile of the seconds; not a number if there are too few."""
        taken = [seconds for _, seconds in self.seconds]
        if len(taken) < 2:
            return math.nan
        return statistics.quantiles(taken, n=1000, method="inclusive")[
            round(share * 1000) - 1
        ]


@dataclass(slots=True)
class Load:
    """Clients of one server.

    Attributes:
        port: Of the server, on loopback.
        tools: URL of the tool.
        random: Decides what is done.
        began: On trio's clock, from which the tallies count.
        tallies: By kind of work.
    """

    port: int
    tools: str = ""
    random: random.Random = field(default_factory=random.Random)
    began: float = 0.0
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self.port}"

    async def deploy(self) -> None:
        """Send the programs, and let the engine meet batches of all sizes."""
        agent = Path(__file__).with_name("programs") / "agent.py"
        async with Client(self.url) as client:
            for name, text in PROGRAMS.items():
                await client.deploy(text.encode(), name)
            await client.deploy(agent.read_bytes(), "agent")
            # The engine keeps code for each number of rows that it has met, of which there are
            # few; those of large batches would come late.
            await client.call("lengths")

    async def run(self, seconds: float) -> None:
        """Work for so long; then all clients vanish at once."""
        with trio.move_on_after(seconds):
            async with Client(self.url) as client, trio.open_nursery() as nursery:
                for name, (count, work, expected) in WORKS.items():
                    for _ in range(count):
                        nursery.start_soon(self._repeat, name, work, expected, client)

    async def _repeat(
        self,
        name: str,
        work: Callable[[Load, Client], Awaitable[str]],
        expected: frozenset[str],
        client: Client,
    ) -> None:
        tally = self.tallies[name]
        while True:
            await trio.sleep(self.random.uniform(0, MAX_THINK_SECONDS))
            began, outcome, text = trio.current_time(), "took too long", ""
            try:
                with trio.move_on_after(WORK_SECONDS):
                    outcome = await work(self, client)
            except RemoteError as error:
                outcome, text = error.code or type(error).__name__, str(error)
            except (OSError, trio.BrokenResourceError) as error:
                outcome, text = type(error).__name__, str(error)
            now = trio.current_time()
            tally.outcomes[outcome] += 1
            if outcome == "ok":
                tally.seconds.append((now - self.began, now - began))
            elif outcome not in expected:
                tally.unexpected.setdefault(outcome, text)


# ---- well-behaved ------------------------------------------------------------------------


async def complete(load: Load, client: Client) -> str:
    """Ask for a completion as OpenAI's clients do, as a stream or at once."""
    asked = {
        "model": "pie-tiny",
        "prompt": load.random.choice(PROMPTS),
        "max_tokens": load.random.randrange(4, 33),
        "stream": load.random.random() < 0.7,
    }
    response = await client.transport.http.post("/v1/completions", json=asked)
    if response.status_code != 200:
        return f"status {response.status_code}"
    if not asked["stream"]:
        return "ok" if "text" in response.json()["choices"][0] else "no text"
    return "ok" if response.text.endswith("data: [DONE]\n\n") else "cut off"


async def act(load: Load, client: Client) -> str:
    """Run an agent, which calls a tool between generations."""
    calls, tokens = load.random.randrange(1, 4), 8
    arguments = {"shared": SHARED, "own": OWN, "tools": load.tools, "observed": 16}
    found = await client.call("agent", calls=calls, tokens=tokens, **arguments)
    return "ok" if found == (calls + 1) * tokens else f"{found} tokens"


async def talk(load: Load, client: Client) -> str:
    """Talk with a program over a WebSocket, and sometimes leave in the middle."""
    async with client.session("talk") as session:
        for _ in range(load.random.randrange(1, 4)):
            await session.send(load.random.choice(PROMPTS))
            async for event in session:
                if load.random.random() < 0.01:
                    return "left"
                if isinstance(event, Message) and not event.content:
                    break
        await session.end_input()
        await session.result()
    return "ok"


async def detach(load: Load, client: Client) -> str:
    """Launch a program and leave it, come back, and end it."""
    instance = await client.launch("talk")
    await instance.send(load.random.choice(PROMPTS))
    seen, is_over = 0, False
    while not is_over:  # each time from where the last one has left
        async with instance.attach(after=seen) as run:
            async for event in run:
                seen = event.number
                is_over = isinstance(event, Message) and not event.content
                if is_over or load.random.random() < 0.2:
                    break
    if load.random.random() < 0.5:
        await instance.end_input()
        async with instance.attach(after=seen) as rest:
            async for event in rest:
                if isinstance(event, End):
                    break
    state = (await instance.cancel()).state
    return "ok" if state in ("cancelled", "succeeded") else state


async def multiply(load: Load, client: Client) -> str:
    """Run a program with children, topics and the store."""
    found = await client.call("family", number=load.random.randrange(1000))
    return "ok" if found else "no keys"


async def upload(load: Load, client: Client) -> str:
    """Send a program in place of another, run it, and remove it now and then.

    There are few of them, since the server keeps what it has compiled.
    """
    number = load.random.randrange(16)
    name = f"uploaded-{number % 4}"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("app.py", program("from part import value\nreturn value"))
        packed.writestr("part.py", f"value = {number}\n" + "# filler\n" * 1000)
    await client.deploy(archive.getvalue(), name)
    if load.random.random() < 0.1:
        await client.undeploy(name)
        return "ok"
    found = await client.call(name)  # another client may have sent another one since
    return "ok" if isinstance(found, int) else "wrong"


async def watch(load: Load, client: Client) -> str:
    """Look at the server, as dashboards do."""
    if load.random.random() < 0.5:
        await client.metrics()
    else:
        await client.transport.ask("GET", "/v1/stats")
    await client.instances()
    return "ok"


# ---- not well-behaved --------------------------------------------------------------------


async def leave(load: Load, client: Client) -> str:
    """Leave a run at any moment."""
    with trio.move_on_after(load.random.uniform(0, 0.5)):
        name = load.random.choice(("streams", "talk", "flood"))
        async for _ in client.run(name):
            pass
    return "ok"


async def abuse(load: Load, client: Client) -> str:
    """Run a program that spins, grows, floods, raises, recurses or hoards."""
    if load.random.random() < 0.5:
        await client.call(load.random.choice(FAILING))
        return "returned"
    with trio.move_on_after(load.random.uniform(0.2, 1.5)):
        await client.call(load.random.choice(ENDLESS))
        return "returned"
    return "ok"


async def read_slowly(load: Load, _: Client) -> str:
    """Read a flood a little at a time, then leave without a word."""
    body = json.dumps({"program": "flood"}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setblocking(False)
        connection = trio.socket.from_stdlib_socket(raw)
        await connection.connect(("127.0.0.1", load.port))
        await connection.send(
            b"POST /v1/instances HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        for _number in range(load.random.randrange(40)):
            if not await connection.recv(load.random.randrange(1, 4096)):
                return "cut off"
            await trio.sleep(0.1)
        return "ok"


async def intrude(load: Load, _: Client) -> str:
    """Send what is no request, or one that the server must refuse."""
    data = load.random.choice(HOSTILE)
    if load.random.random() < 0.5:  # one byte is another one
        place = load.random.randrange(len(data))
        data = data[:place] + load.random.randbytes(1) + data[place + 1 :]
    stream = await trio.open_tcp_stream("127.0.0.1", load.port)
    async with stream:
        await stream.send_all(data)
        answer = b""
        with trio.move_on_after(1.0):  # it waits for more
            while found := await stream.receive_some():
                answer += found
    if not answer:
        return "no answer"
    status = answer.partition(b" ")[2][:3].decode("latin-1")
    return "ok" if status[:1] in "1234" or status in ("501", "505") else status


async def refuse(load: Load, client: Client) -> str:
    """Ask for what there is not, or with what is none."""
    path, body = load.random.choice(REFUSED)
    try:
        await client.transport.ask("POST", path, body=body)
    except RefusedError as error:
        return "ok" if 400 <= error.status < 500 else f"status {error.status}"
    except RemoteError as error:  # a program with a syntax error
        return "ok" if error.code == "program-failed" else error.code
    return "accepted"


def _request(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: x", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


HOSTILE = (
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"b" * 100_000,
    b"GET / HTTP/1.1\nHost: x\n\n",
    b"GET /" + b"../" * 500 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    _request("/v1/instances", b"{", "Content-Length: 5000"),
    _request("/v1/instances", b"{}", "Content-Length: 99999999999"),
    _request("/v1/instances", b"fffffff\r\n", "Transfer-Encoding: chunked"),
    _request("/v1/instances", b"x" * 100, "Content-Length: 100"),
    _request("/v1/instances", b"[" * 100_000, "Content-Length: 100000"),
    _request("/v1/completions", b'{"prompt": []}', "Content-Length: 14"),
    _request("/mcp", b"{}", "Content-Length: 2", "Content-Type: application/json"),
    b"GET /v1/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    b"\x81\xfe\xff\xff" + bytes(3000),
)
REFUSED = (
    ("/v1/instances", b'{"program": "nothing"}'),
    ("/v1/instances", b'{"program": 1}'),
    ("/v1/instances", b"[]"),
    ("/v1/instances/none/messages", b'{"text": "x"}'),
    ("/v1/completions", b'{"model": "none", "prompt": "x"}'),
    ("/v1/chat/completions", b'{"model": "pie-tiny", "messages": []}'),
)
FAILURES = frozenset({"program-failed", "limit-exceeded", "out-of-pages", "trapped"})
BROKEN = frozenset({"BrokenResourceError", "ConnectionResetError", "BrokenPipeError"})
WORKS: dict[
    str, tuple[int, Callable[[Load, Client], Awaitable[str]], frozenset[str]]
] = {
    "completion": (3, complete, frozenset()),
    "agent": (2, act, frozenset()),
    "WebSocket": (2, talk, frozenset({"left"})),
    "detach and attach": (1, detach, frozenset()),
    "children and store": (1, multiply, frozenset()),
    "upload": (1, upload, frozenset({"not-found"})),
    "look": (1, watch, frozenset()),
    "leave": (2, leave, frozenset()),
    "hostile program": (3, abuse, FAILURES | {"took too long"}),
    "slow reader": (2, read_slowly, frozenset()),
    "hostile request": (2, intrude, BROKEN | {"no answer"}),
    "refused request": (1, refuse, frozenset()),
}
"""By name: how many do it at once, what it is, and what may come of it beside ``ok``."""


def unexpected(tallies: dict[str, Tally]) -> dict[str, Any]:
    """Return what should not have happened, by kind of work, with an example each."""
    return {
        name: tally.unexpected for name, tally in tallies.items() if tally.unexpected
    }
