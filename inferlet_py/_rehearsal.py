"""A run of the SDK without a host, so that its caches are filled before the first real one."""

from __future__ import annotations

import itertools
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from inferlet_py._host import Host, ModelInfo, connect
from inferlet_py._models import forget_models
from inferlet_py._program import (
    SourceModule,
    compile_module,
    describe_failure,
    find_inferlet,
    load_modules,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["rehearse"]

ROUNDS = 20
"""CPython adapts a function's bytecode after some calls."""

MODULE = "pie_rehearsal"
SOURCE = '''
"""A program that touches what most programs do."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from inferlet_py import (
    Context, Sampler, TopP, inferlet, move_on_after, open_nursery, send
)


@dataclass
class Plain:
    name: str
    numbers: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Frozen:
    """With a text of its own, so that nobody has to write one."""

    name: str | None
    numbers: dict[str, float]


class Pair(NamedTuple):
    first: int
    second: str = ""


@inferlet
async def main(
    prompt: str = "Once", count: int = 2, heat: float = 0.5, kind: Literal["a", "b"] = "a",
    words: list[str] | None = None, choices: Sequence[str | list[int]] = (),
    bias: Mapping[str, float] | None = None, others: dict[str, Any] | None = None,
) -> dict[str, object]:
    """Rehearse.

    Args:
        prompt: A text.
    """
    results = [str(Plain("a") == Plain("b")), repr(Frozen("a", {})), Pair(1).second]
    async with Context() as root:
        await root.fill(prompt)

        async def branch() -> None:
            async with root.fork() as ctx:
                async for chunk in ctx.generate(max_tokens=4, sampler=TopP(0.9)):
                    await send(chunk.text)
                sampler = Sampler(temperature=heat, top_p=0.9, seed=1)
                generation = ctx.generate(max_tokens=2, sampler=sampler, stop=["."])
                await generation.send({"branch": 1})
                await ctx.generate(max_tokens=1, sampler=sampler).text()
                results.append(ctx.text())

        async with open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(branch)
        with move_on_after(1):
            await root.forward(top=2)
        root.truncate(1)
    await send(json.dumps({"count": count}).encode())
    return json.loads(json.dumps({"results": results}))
'''


class _RehearsalHost:
    """Answers every call at once with the same token."""

    def __init__(self) -> None:
        self._tickets = itertools.count(1)
        self._chunks = itertools.count(1)

    def get_arguments(self) -> str:
        return (
            '{"prompt": "Once upon", "count": 2, "heat": 1, "kind": "b", "words": ["x"], '
            '"choices": ["x", [1]], "bias": {"1": 1}, "others": {}}'
        )

    def now(self) -> float:
        return 0.0

    def send(self, _text: str) -> None:
        return None

    def send_bytes(self, _data: bytes) -> None:
        return None

    def wait(self, tickets: Sequence[int], _deadline: float | None) -> Sequence[int]:
        return tickets

    def get_model(self, _name: str) -> ModelInfo:
        return ModelInfo("m", (), "", "", "", "", 8, 64, (0,), 16, 2048, 256, 4, "m")

    def forward_text(self, *_: Any) -> int:
        return next(self._tickets)

    def take_forward(self, _ticket: int) -> Sequence[Any]:
        return [SimpleNamespace(tokens=[1], top_ids=[1, 2], top_probs=[0.5, 0.5])]

    def start_stream(self, *_: Any) -> None:
        self._chunks = itertools.count(4)

    def read_stream(self, _stream: int) -> int:
        return next(self._tickets)

    def relay_stream(self, _stream: int, _envelope: object) -> int:
        return next(self._tickets)

    def collect_stream(self, _stream: int) -> int:
        return next(self._tickets)

    def take_chunk(self, _ticket: int) -> tuple[list[int], str, list[float], None, int]:
        return [1], " a", [], None, next(self._chunks)

    def tokenize(self, *_: Any) -> Sequence[int]:
        return [1, 2, 3]

    def detokenize(self, _model: str, tokens: Sequence[int]) -> str:
        return " a" * len(tokens)

    def _nothing(self, *_: Any) -> None:
        return

    close_stream = cancel = finish = create_queue = alloc_kvpage = dealloc_kvpage = (
        fork_kvpage
    ) = _nothing


def rehearse(*, rounds: int = ROUNDS) -> None:
    """Load, describe and run a program, and report a failure, a few times over."""
    host = cast("Host", _RehearsalHost())
    module = SourceModule(f"{MODULE}.py", SOURCE)
    modules = [SourceModule(module.path, module.text, compile_module(module))]
    for _ in range(rounds):
        connect(host)
        try:
            found = find_inferlet(load_modules(module.path, modules))
            found.describe()
            found.run(host)
            describe_failure(ValueError("rehearsed"))
        finally:
            sys.modules.pop(MODULE, None)
            forget_models()
            connect(None)
