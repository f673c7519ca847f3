"""Programs that call a session directly, as a guest does through the Wasm boundary."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import trio

from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.interfaces import make_interfaces
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.services import Grants, Outgoing, Services, open_services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.application.waiting import Waiting
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.inference.fake import FakeEngine, FakeTokenizer
from tests.control.engines import TIME_LIMIT_SECONDS, Gate

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
    from pathlib import Path

    from pie_trio.application.host.trees import Tree
    from pie_trio.control.export_register import ExportRegister
    from pie_trio.control.pages import PagePool
    from pie_trio.control.served_model import ServedModel
    from pie_trio.engine_api import Batch

NUM_PAGES, PAGE_SIZE = 32, 4

CALL_BY_NAME = {
    name.replace("-", "_"): function.call
    for interface in make_interfaces()
    for name, function in interface.functions.items()
}

Sampler = tuple[float, int, float, float, int]
GREEDY: Sampler = (0.0, 0, 1.0, 0.0, 0)


class GuestSession(Session):
    """A session with the functions of the WIT as methods, as a guest has them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return partial(CALL_BY_NAME[name], self)
        except KeyError:
            raise AttributeError(name) from None


class Client:
    """One instance.

    Attributes:
        on_wait: Called each time before it waits.
    """

    def __init__(self, session: GuestSession) -> None:
        self.session = session
        self.on_wait: Callable[[], None] = lambda: None

    async def resolve(self, answer: Any) -> Any:
        """Return what a call returns, which may have to wait for it."""
        if not isinstance(answer, Waiting):
            return answer
        self.on_wait()
        self.session.settle()
        return await answer.work()

    def forward(
        self,
        tokens: Sequence[int],
        *,
        pages: Sequence[int],
        start: int = 0,
        positions: Sequence[int] | None = None,
        mask: list[list[int]] | None = None,
        outputs: Sequence[int] | None = None,
        sampler: Sampler | None = GREEDY,
        top_k: int = 0,
        queue: int = 0,
    ) -> int:
        """Enqueue a forward that samples after its last token, and return its ticket."""
        if positions is None:
            positions = range(start, start + len(tokens))
        if outputs is None:
            outputs = [len(tokens) - 1]
        ticket: int = self.session.forward_text(
            queue,
            (
                np.array(list(tokens), np.int32),
                np.array(list(positions), np.int32),
                list(pages),
                start,
                mask,
                self.outputs(outputs, sampler, top_k),
                "",
            ),
        )
        return ticket

    @staticmethod
    def outputs(
        rows: Sequence[int], sampler: Sampler | None, top_k: int
    ) -> list[tuple[Any, ...]]:
        """Return what the wire carries for the outputs of a forward."""
        if not len(rows) or (sampler is None and not top_k):
            return []
        chosen = None if sampler is None else (*sampler, 0, None)
        return [(np.array(list(rows), np.int32), chosen, top_k, frozenset())]

    async def take(self, ticket: int) -> list[int]:
        """Return the tokens that a forward sampled."""
        results = await self.resolve(self.session.take_forward(ticket))
        tokens: list[int] = results[0][0] if results else []
        return tokens

    async def run(self, tokens: Sequence[int], **details: Any) -> int:
        """Run a forward and return the one token that it sampled."""
        (token,) = await self.take(self.forward(tokens, **details))
        return token

    async def synchronize(self, queue: int = 0) -> None:
        """Wait for the commands of a queue."""
        await self.resolve(self.session.finish(self.session.synchronize(queue)))


class Rig:
    """A served model, or several, and the clients on it.

    Attributes:
        is_outlived: By a session, which still holds something when the models are closed.
    """

    def __init__(
        self,
        engines: Sequence[FakeEngine],
        services: Services,
        limits: InstanceLimits,
        gate: Gate,
    ) -> None:
        self.engines, self.services = engines, services
        self.models: Mapping[str, ServedModel] = services.models
        self.limits, self.gate = limits, gate
        self.is_outlived = False

    @property
    def engine(self) -> FakeEngine:
        """The first one."""
        return self.engines[0]

    @property
    def pool(self) -> PagePool:
        """Of the first model."""
        return next(iter(self.models.values())).pool

    def make_session(
        self,
        name: str = "test-1",
        *,
        owner: str = "local",
        grants: Grants | None = None,
        depth: int = 0,
        tree: Tree | None = None,
    ) -> GuestSession:
        """Return a session that the caller closes."""
        log = InstanceLog(max_bytes=1000)
        launch = Launch(name, "{}", owner, grants or Grants(), depth, None, tree)
        return GuestSession(launch, self.services, self.limits, log)

    @asynccontextmanager
    async def open_client(
        self, name: str = "test-1", **launch: Any
    ) -> AsyncGenerator[Client]:
        """Run an instance that has queue 0 on the first model."""
        session = self.make_session(name, **launch)
        session.create_queue(0, "")
        try:
            yield Client(session)
        finally:
            await session.close()
            assert_is_closed(session)

    def check_all_free(self) -> None:
        """Assert that all pages are back and nothing is on its way."""
        served = [one for model in self.models.values() for one in model.replicas]
        for model in served:
            model.exports.clear()
        for model in served:
            model.pool.check()
            model.embeds.check()
            assert model.embeds.num_free == model.embeds.num_embeds
            assert model.pool.num_free == model.pool.num_pages, "a page was lost"
            assert model.pool.num_virtual == 0, "somebody still holds a page"
            assert model.batcher.num_unfinished == 0
            assert model.batcher.arrivals.num_expected == 0
        for engine in self.engines:
            assert engine.num_processors == 0, "a processor was lost"
        quotas = self.services.quotas
        assert self.is_outlived or quotas.server.is_idle, (
            f"something still counts: {quotas.server.used}"
        )


def assert_is_closed(session: Session) -> None:
    """Assert that a closed session holds nothing."""
    assert len(session.tickets) == 0
    assert len(session.queues) == 0
    assert all(len(table) == 0 for table in session.pages.values())
    assert len(session.tasks) == 0
    assert len(session.subscriptions) == 0
    assert session.children.num_alive == 0
    assert session.requests.num_bytes == 0
    assert session.in_flight.command_bytes == 0
    assert session.in_flight.mask_bytes == 0
    assert (session.processor_use.num, session.processor_use.num_bytes) == (0, 0)


@asynccontextmanager
async def open_rig(
    *,
    names: Sequence[str] = ("fake",),
    num_pages: int = NUM_PAGES,
    gated: bool = False,
    failures: Mapping[int, Exception] | None = None,
    control: ControlConfig | None = None,
    limits: InstanceLimits | None = None,
    store_path: Path | None = None,
    outgoing: Outgoing | None = None,
    on_step: Callable[[Batch], None] | None = None,
    register: ExportRegister | None = None,
) -> AsyncGenerator[Rig]:
    """Serve fake models; asserts in the end that every page is back.

    Those of one name are replicas of one model.
    """
    control = control or ControlConfig(policy="rendezvous:0.5,0", goes_ahead=True)
    if on_step is None:  # steps that the gate holds back must not hold back the loop
        control = replace(control, inline_seconds=0.0)
    limits = limits or InstanceLimits()
    with trio.fail_after(TIME_LIMIT_SECONDS):
        gate = Gate(is_open=not gated)
        engines = [
            FakeEngine(
                name=name,
                num_pages=num_pages,
                page_size=PAGE_SIZE,
                failures=failures,
                on_step=on_step or gate,
            )
            for name in names
        ]
        loaded = [LoadedEngine(engine, FakeTokenizer()) for engine in engines]
        async with (
            open_models(loaded, control, limits, register=register) as models,
            open_services(models, store_path=store_path, outgoing=outgoing) as services,
        ):
            rig = Rig(engines, services, limits, gate)
            try:
                yield rig
            finally:
                gate.open()
            rig.check_all_free()
