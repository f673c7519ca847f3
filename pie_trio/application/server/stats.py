"""What goes on in a server, sampled a few times a second while somebody watches.

There is no task for it: whoever waits for the next sample takes it when it is due, and all others
who wait find it. So it costs nothing while nobody watches, and the same for one as for many.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import trio

from pie_trio.application.server.stats_pages import FIRST_INSTANCE, map_pages
from pie_trio.application.server.stats_points import Point, make_points
from pie_trio.control.trace import StepRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from pie_trio.control.served_model import ServedModel
    from pie_trio.control.trace import CommandRecord

__all__ = [
    "ModelSample",
    "ReplicaSample",
    "Sample",
    "Sampler",
    "TenantSample",
]

INTERVAL_SECONDS = 0.5
MAX_SHARE = 0.02
"""Of the loop's time that sampling may take; with very many pages samples become rarer."""
MAX_INTERVAL_SECONDS = 10.0
NUM_POINTS = 120
MAX_BATCHES = 240


@dataclass(frozen=True, slots=True)
class TenantSample:
    """What an instance holds of one model.

    Attributes:
        pages: That its handles stand for.
        unfinished: Commands that were submitted and have not finished.
        is_suspended: Its pages are in host memory.
    """

    pages: int
    unfinished: int
    is_suspended: bool


@dataclass(frozen=True, slots=True)
class ReplicaSample:
    """What goes on on one of the engines of a model.

    Attributes:
        state: Of the engine.
        num_pages: Physical pages.
        num_free: Of them.
        num_unfinished: Commands.
        num_instances: That are placed there.
    """

    state: str
    num_pages: int
    num_free: int
    num_unfinished: int
    num_instances: int


@dataclass(frozen=True, slots=True)
class ModelSample:
    """What goes on on one model, on all its replicas together.

    Attributes:
        batches: The latest steps, oldest first.
        num_new: Of these, since the sample before.
        points: The last minute, oldest first; the last is of this sample.
        codes: ``[num_pages]`` int32, replica after replica: see :mod:`.stats_pages`.
        tenants: By instance.
        num_free: Physical pages.
        num_swapped: Pages in host memory.
        num_exports: Exports of pages.
        num_unfinished: Commands.
        state: Of its engines: see :attr:`Replicas.state`.
        replicas: Each of them.
    """

    batches: Sequence[StepRecord]
    num_new: int
    points: Sequence[Point]
    codes: NDArray[np.int32]
    tenants: Mapping[str, TenantSample]
    num_free: int
    num_swapped: int
    num_exports: int
    num_unfinished: int
    state: str
    replicas: Sequence[ReplicaSample]


@dataclass(slots=True, eq=False)
class Sample:
    """What goes on on all models.

    Attributes:
        number: Counted from 1.
        at: In seconds since 1970.
        offset: From trio's clock to seconds since 1970.
        interval_seconds: Until the next one.
        models: By name.
        codes: The code of each instance that uses a model, on the maps of pages.
        previous: The one before, unless a sample was missed since; dropped with the next one.
        views: What each owner is shown of it, made when it is first asked for: by name, and
            whether it may see everything.
    """

    number: int
    at: float
    offset: float
    interval_seconds: float
    models: Mapping[str, ModelSample]
    codes: Mapping[str, int]
    previous: Sample | None
    views: dict[tuple[str, bool], object] = field(
        default_factory=dict[tuple[str, bool], object]
    )


class Sampler:
    """Takes samples for all who watch.

    Args:
        models: Of the server, by name.

    Attributes:
        server: Differs each time that a server starts, so that watchers see it.
        num_taken: Samples.
    """

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self.server = secrets.token_hex(6)
        self.num_taken = 0
        self._models = models
        self._sample: Sample | None = None
        self._points = {name: deque[Point](maxlen=NUM_POINTS) for name in models}
        self._batches = {name: deque[StepRecord](maxlen=MAX_BATCHES) for name in models}
        self._last_step = {
            (name, one.number): 0
            for name, model in models.items()
            for one in model.replicas
        }
        self._sampled_at = float("-inf")
        self._due_at = float("-inf")
        self._cost = 0.0  # of the latest sample, in seconds
        self._codes: dict[str, int] = {}
        self._next_code = FIRST_INSTANCE

    async def next(self, after: int = 0) -> Sample:
        """Wait for a sample with a higher number, which is at most one interval old."""
        while True:
            if trio.current_time() >= self._due_at:
                return self._take()
            if self._sample is not None and self._sample.number > after:
                return self._sample
            await trio.sleep_until(self._due_at)

    def _take(self) -> Sample:
        now, began = trio.current_time(), time.perf_counter()
        at = time.time()
        last = self._sample
        # Nobody watched for a while: what is in between is read from the traces.
        was_away = now - self._due_at > 2 * INTERVAL_SECONDS
        self._sampled_at, since = now, self._sampled_at
        if last is not None:
            last.previous = None
        codes = self._code_all()
        models = {
            name: self._sample_model(
                name, model, since=None if was_away else since, now=now, offset=at - now
            )
            for name, model in self._models.items()
        }
        self.num_taken += 1
        previous = None if was_away else last
        self._sample = sample = Sample(
            self.num_taken, at, at - now, INTERVAL_SECONDS, models, codes, previous
        )
        self._cost = 0.0
        self.charge(time.perf_counter() - began)
        return sample

    def charge(self, seconds: float) -> None:
        """Note the time that the latest sample took, or a view of it: the next comes later."""
        self._cost += seconds
        interval = min(
            max(INTERVAL_SECONDS, self._cost / MAX_SHARE), MAX_INTERVAL_SECONDS
        )
        self._due_at = self._sampled_at + interval
        if self._sample is not None:
            self._sample.interval_seconds = interval

    def _code_all(self) -> Mapping[str, int]:
        """Give each instance that uses a model a code, which it keeps."""
        names = {
            tenant.name
            for model in self._models.values()
            for one in model.replicas
            for tenant in one.batcher.tenants
        }
        self._codes = {n: code for n, code in self._codes.items() if n in names}
        for name in sorted(names - self._codes.keys()):
            self._codes[name] = self._next_code
            self._next_code += 1
        return dict(self._codes)

    def _sample_model(
        self,
        name: str,
        model: ServedModel,
        *,
        since: float | None,
        now: float,
        offset: float,
    ) -> ModelSample:
        points, replicas = self._points[name], model.replicas
        if since is None:
            points.clear()
            self._batches[name].clear()
            for one in replicas:
                self._last_step[name, one.number] = 0
            edges = [now - INTERVAL_SECONDS * n for n in range(NUM_POINTS, -1, -1)]
        else:
            edges = [since, now]
        steps, commands = list[StepRecord](), list["CommandRecord"]()
        tenants, codes = dict[str, TenantSample](), list["NDArray[np.int32]"]()
        for one in replicas:
            trace, key = one.batcher.trace, (name, one.number)
            if fresh := trace.steps_after(self._last_step[key])[::-1]:
                self._last_step[key] = fresh[-1].number
                steps += fresh
            commands += trace.commands_after(edges[0])[::-1]
            codes.append(self._sample_tenants(one, tenants))
        if len(replicas) > 1:
            steps.sort(key=lambda step: step.finished_at)
            commands.sort(key=lambda command: command.finished_at)
        points.extend(make_points(steps, commands, edges, offset))
        self._batches[name].extend(steps)
        return ModelSample(
            tuple(self._batches[name]),
            min(len(steps), MAX_BATCHES),
            tuple(points),
            np.concatenate(codes),
            tenants,
            sum(one.pool.num_free for one in replicas),
            sum(len(one.pool.swapped) for one in replicas),
            sum(len(one.exports) for one in replicas),
            sum(one.batcher.num_unfinished for one in replicas),
            replicas.state,
            tuple(
                ReplicaSample(
                    one.state,
                    one.pool.num_pages,
                    one.pool.num_free,
                    one.batcher.num_unfinished,
                    one.num_inferlets,
                )
                for one in replicas
            ),
        )

    def _sample_tenants(
        self, model: ServedModel, tenants: dict[str, TenantSample]
    ) -> NDArray[np.int32]:
        """Add who uses one replica; return who holds each of its pages."""
        holders = list[tuple[int, list[int]]]()
        for tenant in model.batcher.tenants:
            pages = list(tenant.pages())
            holders.append((self._codes[tenant.name], pages))
            tenants[tenant.name] = TenantSample(
                len(set(pages)), len(tenant.unfinished), tenant.is_suspended
            )
        return map_pages(model.pool, holders)
