"""A host without an engine: its model says what a test tells it, and it keeps what was run.

Its tokens are bytes, and one for each special token of ChatML. What a context has written is kept
slot by slot, so that a test sees which tokens the model ran on, and that all that it replies to are
those of the chat.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from inferlet_py import _kernel
from inferlet_py._host import Host, ModelInfo, connect
from inferlet_py._models import forget_models
from inferlet_py._text import StopStrings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence

    from inferlet_py._host import ChatValues, ChunkValues, StreamValues

__all__ = ["ScriptedHost", "run"]

SPECIAL = ("<|im_start|>", "<|im_end|>", "<s>")
END = 256 + SPECIAL.index("<|im_end|>")


class ScriptedHost:
    """Replies with the texts of a script, one a turn, byte by byte.

    Attributes:
        replies: Still to come.
        requests: The tokens that the model ran on at the start of each turn.
        tokens: All that it replied to.
        prompts: That as text.
        chats: What was to be rendered.
        sleeps: Until when the program has slept.
        logged: Level and text of each line.
        sent: What the program sent.
    """

    def __init__(self, *replies: str, chunk_size: int = 3) -> None:
        self.replies = deque(replies)
        self.requests: list[list[int]] = []
        self.tokens: list[list[int]] = []
        self.chats: list[ChatValues] = []
        self.sleeps: list[float] = []
        self.logged: list[tuple[str, str]] = []
        self.sent: list[str] = []
        self._clock = 0.0
        self._chunk_size = chunk_size
        self._tickets = itertools.count(1)
        self._slots: dict[int, int] = {}
        self._streams: dict[int, deque[int]] = {}
        self._written: dict[int, int] = {}
        self._reads: dict[int, int] = {}
        self._texts: dict[int, tuple[codecs.IncrementalDecoder, StopStrings]] = {}

    @property
    def prompts(self) -> list[str]:
        return [self.show(tokens) for tokens in self.tokens]

    # ---- the run ---------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock

    def wait(self, tickets: Sequence[int], deadline: float | None) -> Sequence[int]:
        if tickets:
            return tickets
        assert deadline is not None, "nothing would ever happen"
        self.sleeps.append(deadline)
        self._clock = deadline
        return []

    def log(self, level: str, text: str, _fields: str) -> None:
        self.logged.append((level, text))

    def send(self, text: str) -> None:
        self.sent.append(text)

    def get_version(self) -> str:
        return "1"

    def nothing(self, *_: Any) -> None:
        return

    cancel = finish = create_queue = alloc_kvpage = dealloc_kvpage = nothing
    fork_kvpage = nothing

    # ---- the model -------------------------------------------------------------------------

    def get_model(self, _name: str) -> ModelInfo:
        template = "<|im_start|> <tool_call>"
        return ModelInfo(
            *("scripted", (), "", "", "", template, 259, 4096, (END,), 16, 2048),
            *(256, 4, "scripted"),
        )

    def tokenize(self, _model: str, text: str, _special: bool) -> list[int]:
        tokens: list[int] = []
        while text:
            found = [s for s in SPECIAL if text.startswith(s)]
            size = len(found[0]) if found else 1
            tokens += [256 + SPECIAL.index(found[0])] if found else text[:1].encode()
            text = text[size:]
        return tokens

    def detokenize(self, _model: str, tokens: Sequence[int]) -> str:
        shown = bytes(token for token in tokens if token < 256)
        return shown.decode(errors="replace")

    def show(self, tokens: Iterable[int]) -> str:
        """Return tokens as text, special ones included."""
        parts = [bytes([t]) if t < 256 else SPECIAL[t - 256].encode() for t in tokens]
        return b"".join(parts).decode(errors="replace")

    def render_chat(self, _model: str, chat: ChatValues) -> str:
        self.chats.append(chat)
        parts: list[str] = []
        if chat.tools:
            names = [one["function"]["name"] for one in json.loads(chat.tools)]
            parts.append(f"<|im_start|>tools\n{' '.join(names)}<|im_end|>\n")
        for message in json.loads(chat.messages):
            content = message["content"] or ""
            for call in message.get("tool_calls", []):
                content += f"<tool_call>{json.dumps(call['function'])}</tool_call>"
            if "forget" in chat.variables:
                content = content.rpartition("</think>")[2]
            parts.append(f"<|im_start|>{message['role']}\n{content}<|im_end|>\n")
        if chat.add_generation_prompt:
            parts.append("<|im_start|>assistant\n")
        return "".join(parts)

    # ---- forwards and streams --------------------------------------------------------------

    def forward_text(
        self, _queue: int, tokens: list[int], positions: list[int], *_: Any
    ) -> int:
        self._slots.update(zip(positions, tokens, strict=True))
        return next(self._tickets)

    def take_forward(self, _ticket: int) -> list[Any]:
        return []

    def start_stream(self, _queue: int, handle: int, request: StreamValues) -> None:
        self.requests.append(request.tokens)
        for slot, token in enumerate(request.tokens, request.start):
            self._slots[slot] = token
        end = request.start + len(request.tokens)
        self.tokens.append([self._slots[slot] for slot in range(end)])
        reply = self.replies.popleft()
        tokens = [*self.tokenize("", reply, False), END][: request.max_tokens]
        self._streams[handle], self._written[handle] = deque(tokens), end
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._texts[handle] = decoder, StopStrings(request.stop_texts)

    def read_stream(self, handle: int) -> int:
        ticket = next(self._tickets)
        self._reads[ticket] = handle
        return ticket

    def take_chunk(self, ticket: int) -> ChunkValues:
        handle = self._reads.pop(ticket)
        left, (decoder, strings) = self._streams[handle], self._texts[handle]
        tokens: list[int] = []
        text, finish = "", None
        while left and finish is None and len(tokens) < self._chunk_size:
            tokens.append(left.popleft())
            if tokens[-1] == END:
                finish = "stop-token"
                break
            self._slots[self._written[handle]] = tokens[-1]
            self._written[handle] += 1
            is_end = not left
            shown, is_stopped = strings.add(
                decoder.decode(bytes(tokens[-1:]) if tokens[-1] < 256 else b"", is_end)
            )
            text += shown
            if is_stopped:
                finish = "stop-text"
            elif is_end:
                finish = "length"
        if finish in ("stop-token", "length"):
            text += strings.add(decoder.decode(b"", True))[0] + strings.finish()
        written = self._written[handle]
        return tokens, text, [], finish, written - (finish != "stop-token")

    def close_stream(self, _handle: int) -> None:
        return


@contextmanager
def connected(host: ScriptedHost) -> Generator[None]:
    """Let the SDK talk to a host inside of the block."""
    forget_models()
    connect(cast("Host", host))
    try:
        yield
    finally:
        connect(None)
        forget_models()


def run(host: ScriptedHost, program: Callable[[], Awaitable[Any]]) -> Any:
    """Run a program on the SDK's kernel."""
    with connected(host):
        return _kernel.run(program, waiter=cast("Host", host))
