"""How many calls of the host a technique makes for each token of its output.

    python -m benchmarks.run calls_per_token

The programs are the examples, on pie-tiny, and run for real; tokens are those of the text that comes
out. Calls are told apart as in the paper's
figure 11: those that bring work to the inference layer, and those that the control layer answers.
Nothing here depends on time.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from benchmarks.harness import open_bare_launcher
from benchmarks.pairing import take_turns
from benchmarks.reporting import Metric, Report
from pie_trio.application.host.interfaces import (
    make_interfaces,
    make_source_interface,
)
from pie_trio.application.lifecycle.programs import load_program
from pie_trio.application.run.setup import default_model, load_engine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.pairing import Point, Series, Side
    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.wasm.linking import HostFunction, HostInterface
    from pie_trio.application.wasm.runtime import LinkedComponent, WasmRuntime
    from pie_trio.engine_api import Tokenizer

INFERENCE_CALLS, CONTROL_CALLS = "inference", "control"
EXAMPLES = Path(__file__).parent.parent / "examples"
PROMPT = "Once upon a time"
TECHNIQUES: Mapping[str, Mapping[str, Any]] = {
    "text_completion": {"max_tokens": 64},
    "beam_search": {"width": 5, "max_tokens": 24},
    "speculative_decoding": {"max_tokens": 64},
    "jacobi_decoding": {"max_tokens": 64},
    "attention_sink": {"max_tokens": 64},
}
"""Those that continue a text, with their arguments."""
INFERENCE = {"forward", "input-text", "input-image", "output-text", "decode"}
"""Interfaces whose calls bring work to the engine."""
ANSWERED = ("take-", "close-")
"""Calls of theirs that the control layer answers: what is taken is there already."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add which techniques are counted."""
    parser.set_defaults(rounds=1)
    parser.add_argument("--techniques", nargs="+", default=list(TECHNIQUES))


def measure(options: argparse.Namespace) -> Report:
    """Count the calls of each technique."""
    return Report(
        title="host calls for each token of the output",
        metrics=(
            Metric("inference", "calls a token"),
            Metric("control", "calls a token"),
            Metric("steps", "a token"),
        ),
        series=trio.run(_count, options),
        base="",
        x="technique",
        notes=[
            "The paper has 1.6 + 1.5 for text completion and about 17 + 13 for beams."
        ],
    )


async def _count(options: argparse.Namespace) -> list[Series]:
    calls: Counter[str] = Counter()
    loaded = load_engine(default_model())
    points: list[Point] = [{"technique": name} for name in options.techniques]
    async with open_bare_launcher(
        link=partial(_link_counting, calls),
        engine=loaded.engine,
        tokenizer=loaded.tokenizer,
    ) as launcher:
        sides: dict[str, Side] = {
            "Pie": partial(_run, launcher, loaded.tokenizer, calls)
        }
        return await take_turns(sides, points, rounds=options.rounds)


async def _run(
    launcher: Launcher, tokenizer: Tokenizer, calls: Counter[str], point: Point
) -> dict[str, float]:
    name = str(point["technique"])
    arguments = TECHNIQUES[name]
    program = load_program(EXAMPLES / name)
    await launcher.compile(program)
    (model,) = launcher.models.values()
    steps = len(model.batcher.trace.steps)
    calls.clear()
    instance = launcher.prepare(program, {**arguments, "prompt": PROMPT})
    sent: list[bytes | str] = []
    results: list[Any] = []

    async def read() -> None:
        while messages := await instance.session.outbox.take():
            sent.extend(messages)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        results.append(json.loads(await instance.run()))
    count = _count_tokens(tokenizer, sent, results[0])
    return {
        "inference": calls[INFERENCE_CALLS] / count,
        "control": calls[CONTROL_CALLS] / count,
        "steps": (len(model.batcher.trace.steps) - steps) / count,
    }


def _count_tokens(
    tokenizer: Tokenizer, sent: Sequence[bytes | str], result: Any
) -> int:
    """Return the tokens of an output: what was sent, or the text of the result."""
    if isinstance(result, dict) and "tokens" in result:
        return int(result["tokens"])
    text = result["text"] if isinstance(result, dict) else "".join(map(str, sent))
    return len(tokenizer.encode(text.removeprefix(PROMPT), add_special_tokens=False))


def _link_counting(
    calls: Counter[str], runtime: WasmRuntime, path: Path
) -> LinkedComponent:
    """Link the language component with functions that count their calls."""
    interfaces = [*make_interfaces(), make_source_interface(_has, _get)]
    return runtime.link(
        runtime.compile(path), [_counting(one, calls) for one in interfaces]
    )


def _has(host: Any) -> bool:
    return bool(host.has_program())


def _get(host: Any) -> Any:
    return host.get_program()


def _counting(interface: HostInterface, calls: Counter[str]) -> HostInterface:
    def counted(name: str, function: HostFunction) -> HostFunction:
        call: Callable[..., Any] = function.call
        brings_work = interface.short_name in INFERENCE
        brings_work = brings_work and not name.startswith(ANSWERED)
        kind = INFERENCE_CALLS if brings_work else CONTROL_CALLS

        def count(*args: Any) -> Any:
            calls[kind] += 1
            return call(*args)

        return replace(function, call=count)

    functions = {name: counted(name, x) for name, x in interface.functions.items()}
    return replace(interface, functions=functions)
