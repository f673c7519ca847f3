"""A server with pie-tiny as a process of its own, for browsers, and what it is to run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 60

WRITER = '''
from inferlet_py import Context, inferlet, messages, send, span


@inferlet
async def main(prompt: str = "Once upon a time", pieces: int = 3, tokens: int = 24) -> int:
    """Continue a text in several contexts, and again for each line that comes in.

    Args:
        prompt: What they continue.
        pieces: How many contexts.
        tokens: Most tokens of each piece.
    """
    done = 0
    print("writing", pieces, "pieces")
    contexts = []
    for number in range(pieces):
        context = Context()
        await context.fill(prompt + " " * number)
        contexts.append(context)
    with span("writing"):
        for context in contexts:
            async for chunk in context.generate(max_tokens=tokens):
                await send(chunk.text)
            done += 1
    async for line in messages():
        print("got", line)
        await send(f"\\n<{line}>\\n")
    return done
'''
README = """# Writer

Continues a text in *several* contexts.

| argument | what it is |
| --- | --- |
| `prompt` | what they continue |
| `pieces` | how many contexts |

```console
$ pie launch writer --pieces 4
```
"""


class Server:
    """A process that serves at one port.

    Attributes:
        url: Of it.
    """

    def __init__(self, data: Path, port: int = 0, *flags: str) -> None:
        arguments = [
            "serve",
            "--port",
            str(port),
            "--data-dir",
            str(data),
            "--warm",
            "1",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pie_trio", *arguments, "--grace", "1", *flags],
            cwd=ROOT,
            env={**os.environ, "PIE_MODEL": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        self.banner = ""
        for line in self._process.stderr:
            self.banner += line
            if line.startswith("on http://"):
                break
        else:
            raise AssertionError(f"no server: {self.banner}")
        self.url = line.split()[1].rstrip(",;")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=LIMIT_SECONDS)

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request, and return its answer, which is JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", None if body is None else data, method=method
        )
        request.add_header("accept", "application/json")
        with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
            return json.load(answer)

    def launch(self, program: str, **arguments: Any) -> str:
        """Launch a program that outlives the request, and return the instance's id."""
        asked = {"program": program, "arguments": arguments, "detach": True}
        return str(self.ask("POST", "/v1/instances", asked)["id"])


@contextmanager
def serving(data: Path, *flags: str) -> Generator[Server]:
    """Run a server for as long as the block is open."""
    server = Server(data, 0, *flags)
    try:
        yield server
    finally:
        server.stop()
