"""Renders chats in a process of its own, so that no template can stop the server.

A template is a program from wherever the model came from. The sandbox keeps it from the system,
but not from a loop without end or a string of gigabytes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import pie_trio
from pie_trio.errors import BadArgumentError, InferletError, LimitError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

__all__ = ["ChatRenderer", "RenderRequest", "open_chat_renderer"]

MAX_CHARACTERS = 1 << 22
"""Of a rendered chat: what the tokenizer takes at once."""

RENDER_SECONDS = 5.0
"""For what takes a millisecond; busy cores are slow."""

START_SECONDS = 60.0
CLOSE_SECONDS = 5.0
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """What to render.

    Attributes:
        template: Jinja.
        messages: As JSON; so are the tools and the variables, which may be empty.
        special_tokens: By the names that templates use.
        add_generation_prompt: As templates understand it.
        now: Local time as ISO 8601, which the template may ask for.
        max_characters: Of the text.
    """

    template: str
    messages: str = "[]"
    tools: str = ""
    variables: str = ""
    special_tokens: dict[str, str] = field(default_factory=dict[str, str])
    add_generation_prompt: bool = False
    now: str = "2000-01-01"
    max_characters: int = MAX_CHARACTERS


class ChatRenderer:
    """A process that renders one chat after the other. Made by :func:`open_chat_renderer`.

    Args:
        render_seconds: The longest that one may take.

    Attributes:
        num_started: Processes so far: one that was ended is replaced at the next request.
    """

    def __init__(self, *, render_seconds: float = RENDER_SECONDS) -> None:
        self.num_started = 0
        self._render_seconds = render_seconds
        self._lock = trio.Lock()
        self._process: trio.Process | None = None
        self._buffer = bytearray()

    async def render(self, request: RenderRequest) -> str:
        """Return the text of a chat. If this is cancelled, the process ends.

        Raises:
            BadArgumentError: The template refused the messages, or cannot be run.
            LimitError: It took too long, too much memory, or the text is too long.
        """
        line = json.dumps(asdict(request)).encode() + b"\n"
        async with self._lock:
            reply = await self._ask(line)
        if "error" in reply:
            raise BadArgumentError(reply["error"])
        if "too_long" in reply:
            raise LimitError(
                f"the chat template rendered more than {request.max_characters} characters, "
                "which is the limit: leave the oldest messages out"
            )
        return reply["text"]

    async def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        self._buffer.clear()
        if process is None:
            return
        process.kill()
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await process.wait()
            assert process.stdin is not None, "a pipe"
            assert process.stdout is not None, "a pipe"
            await process.stdin.aclose()
            await process.stdout.aclose()

    async def _ask(self, line: bytes) -> dict[str, str]:
        """Send a request and return the answer; without one the process is ended."""
        reply: bytes | None = None
        has_timed_out = True
        try:
            process = self._process or await self._start()
            with trio.move_on_after(self._render_seconds):
                reply = await self._exchange(process, line)
                has_timed_out = False
        finally:
            if reply is None:
                await self.close()
        if reply is None:
            what = (
                f"took longer than {self._render_seconds:g} s"
                if has_timed_out
                else "needed more memory than there is for it"
            )
            raise LimitError(
                f"the chat template {what}: is it the one that came with the model?"
            )
        found: dict[str, str] = json.loads(reply)
        return found

    async def _start(self) -> trio.Process:
        root = str(Path(pie_trio.__file__).parents[1])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        process = await trio.lowlevel.open_process(
            [sys.executable, "-P", "-m", "pie_trio.application.chat.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the server, which then ends it
        )
        self._process = process
        self.num_started += 1
        # An empty template takes no time: what passes is the start.
        ready = None
        with trio.move_on_after(START_SECONDS):
            line = json.dumps(asdict(RenderRequest(""))).encode() + b"\n"
            ready = await self._exchange(process, line)
        if ready is None:
            raise InferletError("the process that renders chats does not start")
        return process

    async def _exchange(self, process: trio.Process, line: bytes) -> bytes | None:
        """Send a line and return the next that comes; None if the process has ended."""
        assert process.stdin is not None, "a pipe"
        assert process.stdout is not None, "a pipe"
        try:
            await process.stdin.send_all(line)
            while (end := self._buffer.find(b"\n")) < 0:
                data = await process.stdout.receive_some(READ_BYTES)
                if not data:
                    return None
                self._buffer += data
        except trio.BrokenResourceError:
            return None
        reply = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return reply


@asynccontextmanager
async def open_chat_renderer(
    *, render_seconds: float = RENDER_SECONDS
) -> AsyncGenerator[ChatRenderer]:
    """Render chats for as long as the block is open; the process starts at the first."""
    renderer = ChatRenderer(render_seconds=render_seconds)
    try:
        yield renderer
    finally:
        await renderer.close()
