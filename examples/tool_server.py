"""Tools over HTTP for the agents: `python examples/tool_server.py` serves them on this machine.

`POST /weather` with `["Oslo"]` answers `{"sky": "windy", "degrees": 9}`, and `GET /weather/Oslo`
`windy, 9 degrees`. Programs reach it with `pie run --allow-http 127.0.0.1:8099`.
"""

from __future__ import annotations

import argparse
import ast
import json
import operator
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Callable

PORT = 8099
SKIES = ("sunny", "cloudy", "rainy", "snowy", "windy", "foggy", "stormy", "clear")
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
VALUES = {"kelmo": 42, "red_kite": 17, "home": "Oslo"}
ITEMS = ("red kite", "red hat", "blue drum", "green boat", "silver bell")
FACTORS = {("km", "m"): 1000, ("kg", "g"): 1000, ("hours", "minutes"): 60}


def calculator(expression: str) -> dict[str, object]:
    """Compute a number of numbers, `+`, `-` and `*`."""

    def value_of(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value_of(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                result: int = OPERATORS[type(op)](value_of(left), value_of(right))
                return result
        raise ValueError(f"cannot compute {expression}: use numbers and + - *")

    return {"result": value_of(ast.parse(expression, mode="eval").body)}


def weather(city: str) -> dict[str, object]:
    """Tell the weather in a city, which never changes."""
    digest = zlib.crc32(city.encode())
    return {"sky": SKIES[digest % len(SKIES)], "degrees": digest // 16 % 45 - 10}


def lookup(key: str) -> dict[str, object]:
    """Return the value of a key."""
    return {"value": VALUES[key]} if key in VALUES else {"error": "not found"}


def convert(value: float | str, source: str, target: str) -> dict[str, object]:
    """Change the unit of a value."""
    if (source, target) in FACTORS:
        return {"result": int(float(value) * FACTORS[source, target])}
    raise ValueError(f"cannot convert {source} to {target}")


def search(word: str) -> dict[str, object]:
    """Return the items with a word in their name."""
    return {"items": [item for item in ITEMS if word in item.split()]}


TOOLS: dict[str, Callable[..., dict[str, object]]] = {
    function.__name__: function
    for function in (calculator, weather, lookup, convert, search)
}


def call(name: str, *arguments: Any) -> dict[str, object]:
    """Return what a tool says, or what is wrong with the call."""
    try:
        return TOOLS[name](*arguments)
    except KeyError:
        return {"error": f"there is no tool {name}: there is {', '.join(TOOLS)}"}
    except (TypeError, ValueError, SyntaxError) as error:
        return {"error": str(error)}


def in_words(result: dict[str, object]) -> str:
    """Return a result as people read it."""
    match result:
        case {"sky": sky, "degrees": degrees}:
            return f"{sky}, {degrees} degrees"
        case {"items": list() as items}:
            return ", ".join(map(str, items)) or "nothing"
    return str(next(iter(result.values())))


class ToolServer(ThreadingHTTPServer):
    """The tools on a port of this machine.

    Attributes:
        url: Where they are.
        calls: That were answered: the name, when it came and when it was answered
            (`time.perf_counter`).
        delay_seconds: What each call takes.
    """

    def __init__(self, port: int = 0, *, delay_seconds: float = 0.0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.calls: list[tuple[str, float, float]] = []
        self.delay_seconds = delay_seconds

    def pause(self) -> None:
        """Wait before a call is answered."""
        time.sleep(self.delay_seconds)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Answer a call with its arguments in the path, in words."""
        name, *arguments = map(unquote, self.path.split("/")[1:])
        self._answer(name, lambda: in_words(call(name, *arguments)), "text/plain")

    def do_POST(self) -> None:
        """Answer a call with its arguments as JSON, in JSON."""
        body = self.rfile.read(int(self.headers["content-length"]))
        name, arguments = self.path[1:], json.loads(body)
        self._answer(
            name, lambda: json.dumps(call(name, *arguments)), "application/json"
        )

    def _answer(self, name: str, make: Callable[[], str], content_type: str) -> None:
        server, began = self.server, time.perf_counter()
        assert isinstance(server, ToolServer), "made by it"
        server.pause()
        body = make().encode()
        server.calls.append((name, began, time.perf_counter()))
        self.send_response(200)
        self.send_header("content-type", content_type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as http.server has it
        """Say nothing."""


def main() -> None:
    """Serve the tools until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve tools for the agents.")
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--delay-seconds", type=float, default=0.1)
    given = parser.parse_args()
    server = ToolServer(given.port, delay_seconds=given.delay_seconds)
    print(f"tools at {server.url}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
