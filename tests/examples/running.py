"""Run examples on pie-tiny in one process, and count what they cost."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from examples.tool_server import ToolServer
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.authoring.testing.native_runs import run_natively_in_test
from pie_trio.application.authoring.testing.runs import (
    Order,
    Outcome,
    Sandbox,
    collect,
    open_world,
)
from pie_trio.application.lifecycle.instances import Launcher, open_launcher
from pie_trio.application.run.command import LOCAL_GRANTS, first_leaf

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from pie_trio.application.serving import LoadedEngine
    from pie_trio.control.served_model import ServedModel

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "pie_trio" / "models"
EXAMPLES = ROOT / "examples"
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Use:
    """What an example cost on one model.

    Attributes:
        steps: Of the device.
        forwards: In all steps.
        tokens: New ones in all forwards.
        peak_pages: Physical pages in use at once, at most.
        times: When each step began, on the clock of ``time.perf_counter``.
    """

    steps: int
    forwards: int
    tokens: int
    peak_pages: int
    times: Sequence[float] = field(default=(), repr=False)

    def steps_between(self, began: float, ended: float) -> int:
        """Return how many steps began in a span of time."""
        return sum(began < at < ended for at in self.times)


@dataclass(frozen=True)
class Run:
    """What an example did.

    Attributes:
        result: What it returned.
        text: What it sent.
        uses: By name of the model.
    """

    result: Any
    text: str
    uses: Mapping[str, Use]

    @property
    def use(self) -> Use:
        """What it cost on the default model."""
        return next(iter(self.uses.values()))


@contextmanager
def open_tools() -> Generator[ToolServer]:
    """Serve the tools of the agents on a port of their own."""
    with ToolServer() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Examples:
    """Runs examples on engines that stay loaded.

    Attributes:
        sandbox: That they run in.
    """

    def __init__(self, engines: Mapping[str, LoadedEngine], sandbox: Sandbox) -> None:
        self._engines, self.sandbox = engines, sandbox

    def inside(self, sandbox: Sandbox) -> Examples:
        """Return what runs examples in another sandbox."""
        return Examples(self._engines, sandbox)

    def greedy(self, prompt: str, max_tokens: int) -> str:
        """Return what follows on a prompt without any technique."""
        run = self.run("text_completion", prompt=prompt, max_tokens=max_tokens)
        return run.text.removeprefix(prompt)

    def run(
        self,
        name: str,
        *,
        models: Sequence[str] = ("pie-tiny",),
        allow_http: Sequence[str] = (),
        **arguments: Any,
    ) -> Run:
        """Run an example in Wasm; of the models that are served the first is its default."""
        return self.run_each(name, [arguments], models=models, allow_http=allow_http)[0]

    def run_each(
        self,
        name: str,
        runs: Sequence[Mapping[str, Any]],
        *,
        models: Sequence[str] = ("pie-tiny",),
        allow_http: Sequence[str] = (),
    ) -> list[Run]:
        """Run an example several times in Wasm, one after the other on the same server."""
        order = self._order(name, {}, models, allow_http)
        linked = self.sandbox.link(order)

        async def main() -> list[Run]:
            with trio.fail_after(LIMIT_SECONDS):
                async with (
                    open_world(order) as services,
                    open_launcher(linked, services, order.limits) as launcher,
                ):
                    self.sandbox.seed(0)
                    return [await _run_once(launcher, order, a) for a in runs]

        try:
            return trio.run(main)
        except BaseExceptionGroup as group:
            raise first_leaf(group) from None

    def run_natively(
        self,
        name: str,
        *,
        models: Sequence[str] = ("pie-tiny",),
        allow_http: Sequence[str] = (),
        **arguments: Any,
    ) -> Outcome:
        """Run an example in this Python."""
        order = self._order(name, arguments, models, allow_http)
        return run_natively_in_test(order, None)

    def _order(
        self,
        name: str,
        arguments: Mapping[str, Any],
        models: Sequence[str],
        allow_http: Sequence[str],
    ) -> Order:
        path = EXAMPLES / name
        found = load_project(path)
        grants = found.manifest.grants or LOCAL_GRANTS
        manifest = replace(
            found.manifest, grants=replace(grants, http=tuple(allow_http))
        )
        engines = [self._engines[model] for model in models]
        return Order(
            *(path, found, manifest, arguments, (), engines, {}, 0, None),
            lambda interfaces: interfaces,
        )


async def _run_once(
    launcher: Launcher, order: Order, arguments: Mapping[str, Any]
) -> Run:
    before = {
        name: (len(model.batcher.trace.steps), len(list(model.batcher.trace.pages)))
        for name, model in launcher.models.items()
    }
    outcome = Outcome()
    program = load_project(order.path).program
    http = order.manifest.grants.http if order.manifest.grants else ()
    grants = order.manifest.granted(replace(LOCAL_GRANTS, http=http))
    instance = launcher.prepare(program, arguments, grants=grants)
    async with collect(instance.session, (), outcome):
        result = json.loads(await instance.run())
    uses = {
        name: _count(model, *before[name]) for name, model in launcher.models.items()
    }
    return Run(result, "".join(map(str, outcome.messages)), uses)


def _count(model: ServedModel, first_step: int, first_page: int) -> Use:
    trace = model.batcher.trace
    steps = [s for s in trace.steps[first_step:] if s.kind == "FORWARD"]
    offset = time.perf_counter() - trio.current_time()
    bound = peak = 0
    for index, event in enumerate(trace.pages):
        bound += {"bind": 1, "swap in": 1, "unbind": -1, "swap out": -1}[event.event]
        if index >= first_page:
            peak = max(peak, bound)
    return Use(
        len(steps),
        sum(step.size for step in steps),
        sum(step.num_tokens for step in steps),
        peak,
        [step.chosen_at + offset for step in steps],
    )
