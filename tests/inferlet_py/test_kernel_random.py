"""Random trees of scopes, nurseries, sleeps and errors do the same as under trio.

No two moments of a program are equal by chance: operation number k takes whole seconds plus
two to the power of -k, which floats add up exactly. So the order of events is determined,
but for tasks that are woken up in one moment; both schedulers run those by age.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
from hypothesis import assume, given, settings

from tests.inferlet_py.kernel_twin import describe, run_on_pie, run_on_trio

Log = Callable[[object], None]
Body = tuple["Op", ...]


@dataclasses.dataclass(frozen=True)
class Op:
    """One operation; see the method of ``_Machine`` that its kind names."""

    kind: str
    amount: int
    flag: bool
    bodies: tuple[Body, ...] = ()
    number: int = 0

    @property
    def seconds(self) -> float:
        return self.amount + 2.0**-self.number


def number_ops(body: Body, numbers: Iterator[int]) -> Body:
    """Return the same operations, each with a number of its own."""
    return tuple(
        dataclasses.replace(
            op,
            number=next(numbers),
            bodies=tuple(number_ops(inner, numbers) for inner in op.bodies),
        )
        for op in body
    )


@dataclasses.dataclass(frozen=True)
class Env:
    """What the code of an operation can see."""

    task: str
    scopes: tuple[Any, ...] = ()
    nursery: Any = None

    def inside(self, scope: Any) -> Env:
        return dataclasses.replace(self, scopes=(*self.scopes, scope))


class _Machine:
    """Runs operations with one of the two libraries."""

    def __init__(self, lib: Any, log: Log) -> None:
        self.lib = lib
        self._log = log
        self.event = lib.Event()
        self.limiters = (lib.Lock(), lib.CapacityLimiter(2), lib.Semaphore(1))
        # By number of the channel: its ends, of which there may come more.
        self.senders: list[list[Any]] = []
        self.receivers: list[list[Any]] = []
        for size in range(3):
            sender, receiver = lib.open_memory_channel(size)
            self.senders.append([sender])
            self.receivers.append([receiver])

    def end_of(self, ends: list[list[Any]], op: Op) -> Any:
        """Choose an end, by the amount its channel and by the flag which of its clones."""
        return ends[op.amount % len(ends)][-1 if op.flag else 0]

    async def run(self, body: Body, env: Env) -> None:
        for op in body:
            self.log(env, op, "starts")
            await getattr(self, op.kind)(op, env)
            self.log(env, op, "ends")

    def log(self, env: Env, op: Op, what: object) -> None:
        self._log((env.task, op.number, op.kind, what))

    # ---- operations without a body

    async def sleep(self, op: Op, env: Env) -> None:
        await self.lib.sleep(op.seconds)

    async def checkpoint(self, op: Op, env: Env) -> None:
        await self.lib.checkpoint()

    async def fail(self, op: Op, env: Env) -> None:
        raise ValueError(op.number)

    async def cancel(self, op: Op, env: Env) -> None:
        if env.scopes:
            env.scopes[-1 - op.amount % len(env.scopes)].cancel()

    async def turn_shield(self, op: Op, env: Env) -> None:
        if env.scopes:
            scope = env.scopes[-1 - op.amount % len(env.scopes)]
            scope.shield = not scope.shield

    async def move_deadline(self, op: Op, env: Env) -> None:
        if env.scopes:
            scope = env.scopes[-1 - op.amount % len(env.scopes)]
            scope.deadline = self.lib.current_time() + op.seconds

    async def look(self, op: Op, env: Env) -> None:
        flags = [(s.cancel_called, s.cancelled_caught) for s in env.scopes]
        self.log(env, op, (flags, self.lib.current_effective_deadline()))

    async def set_event(self, op: Op, env: Env) -> None:
        self.event.set()

    async def wait_event(self, op: Op, env: Env) -> None:
        with self.lib.move_on_after(op.seconds) as scope:
            await self.event.wait()
        self.log(env, op, scope.cancelled_caught)

    async def send(self, op: Op, env: Env) -> None:
        with self.lib.move_on_after(op.seconds) as scope:
            await self.end_of(self.senders, op).send(op.number)
        self.log(env, op, scope.cancelled_caught)

    async def receive(self, op: Op, env: Env) -> None:
        with self.lib.move_on_after(op.seconds):
            self.log(env, op, await self.end_of(self.receivers, op).receive())

    async def exchange_nowait(self, op: Op, env: Env) -> None:
        try:
            if op.number % 2:
                self.end_of(self.senders, op).send_nowait(op.number)
            else:
                self.log(env, op, self.end_of(self.receivers, op).receive_nowait())
        except self.lib.WouldBlock:
            self.log(env, op, "would block")

    async def drain(self, op: Op, env: Env) -> None:
        with self.lib.move_on_after(op.seconds):
            async for value in self.end_of(self.receivers, op):
                self.log(env, op, value)

    async def clone(self, op: Op, env: Env) -> None:
        ends = (self.senders, self.receivers)[op.number % 2]
        ends[op.amount % len(ends)].append(self.end_of(ends, op).clone())

    async def close(self, op: Op, env: Env) -> None:
        self.end_of((self.senders, self.receivers)[op.number % 2], op).close()

    async def count(self, op: Op, env: Env) -> None:
        found = self.end_of(self.senders, op).statistics()
        self.log(env, op, [getattr(found, name) for name in STATISTICS])

    # ---- operations with bodies

    async def scope(self, op: Op, env: Env) -> None:
        opener = (self.lib.move_on_after, self.lib.fail_after)[op.amount % 2]
        with opener(op.seconds, shield=op.flag) as scope:
            try:
                await self.run(op.bodies[0], env.inside(scope))
            finally:
                self.log(env, op, scope.cancel_called)
        self.log(env, op, scope.cancelled_caught)

    async def nursery(self, op: Op, env: Env) -> None:
        async with self.lib.open_nursery() as nursery:
            inner = dataclasses.replace(
                env.inside(nursery.cancel_scope), nursery=nursery
            )
            for number, body in enumerate(op.bodies[1:]):
                child = dataclasses.replace(inner, task=f"{env.task}.{number}")
                nursery.start_soon(self.run, body, child)
            await self.run(op.bodies[0], inner)

    async def limited(self, op: Op, env: Env) -> None:
        async with self.limiters[op.amount % len(self.limiters)]:
            await self.run(op.bodies[0], env)
        self.log(env, op, self.limiters[2].value)

    async def catch_group(self, op: Op, env: Env) -> None:
        try:
            await self.run(op.bodies[0], env)
        except* ValueError as group:
            self.log(env, op, describe(group))
            if op.flag:
                await self.run(op.bodies[1], env)

    async def spawn(self, op: Op, env: Env) -> None:
        if env.nursery is not None:
            child = dataclasses.replace(env, task=f"{env.task}/{op.number}")
            for body in op.bodies:
                env.nursery.start_soon(self.run, body, child)

    async def start(self, op: Op, env: Env) -> None:
        if env.nursery is not None:
            child = dataclasses.replace(env, task=f"{env.task}/{op.number}")
            self.log(env, op, await env.nursery.start(self.report, op, child))

    async def report(self, op: Op, env: Env, *, task_status: Any) -> None:
        before, within, *after = op.bodies
        await self.run(before, env)
        with self.lib.move_on_after(op.seconds):
            if op.flag or op.amount:
                task_status.started(op.number)
            await self.run(within, env)
        for body in after:
            await self.run(body, env)

    async def clean_up(self, op: Op, env: Env) -> None:
        try:
            await self.run(op.bodies[0], env)
        finally:
            for body in op.bodies[1:]:
                await self.run(body, env)

    async def catch(self, op: Op, env: Env) -> None:
        try:
            await self.run(op.bodies[0], env)
        except BaseException as error:
            self.log(env, op, describe(error))
            if not op.flag and not isinstance(error, Exception):
                raise


LEAVES = [
    "cancel",
    "checkpoint",
    "clone",
    "close",
    "count",
    "drain",
    "exchange_nowait",
    "fail",
    "look",
    "move_deadline",
    "receive",
    "send",
    "set_event",
    "sleep",
    "turn_shield",
    "wait_event",
]
MAX_OPS = 40  # with more, the bits of a moment would not fit into a float
NUM_BODIES = {
    "scope": 1,
    "nursery": 4,
    "spawn": 2,
    "start": 3,
    "clean_up": 2,
    "catch": 1,
    "catch_group": 2,
    "limited": 1,
}
STATISTICS = (
    "current_buffer_used",
    "open_send_channels",
    "open_receive_channels",
    "tasks_waiting_send",
    "tasks_waiting_receive",
)


def composites(ops: st.SearchStrategy[Op]) -> st.SearchStrategy[Op]:
    bodies = st.lists(ops, max_size=4).map(tuple)
    return st.sampled_from(sorted(NUM_BODIES)).flatmap(
        lambda kind: st.builds(
            Op,
            kind=st.just(kind),
            amount=st.integers(0, 3),
            flag=st.booleans(),
            bodies=st.tuples(*[bodies] * NUM_BODIES[kind]),
        )
    )


leaves = st.builds(
    Op, kind=st.sampled_from(LEAVES), amount=st.integers(0, 3), flag=st.booleans()
)
bodies = st.lists(st.recursive(leaves, composites, max_leaves=8), max_size=3).map(tuple)
programs = (
    # Everything in one nursery, for there to be several tasks at once.
    st.builds(
        Op,
        kind=st.just("nursery"),
        amount=st.just(0),
        flag=st.just(False),
        bodies=st.tuples(*[bodies] * NUM_BODIES["nursery"]),
    )
    .map(lambda op: number_ops((op,), itertools.count(1)))
    .filter(lambda body: total_ops(body) <= MAX_OPS)
)


# Tasks that do little but meet each other: random trees rarely get them to.
MEETINGS = ["send", "receive", "exchange_nowait", "drain", "clone", "close", "count"]
meetings = st.builds(
    Op,
    kind=st.sampled_from([*MEETINGS, "sleep"]),
    amount=st.integers(0, 2),
    flag=st.booleans(),
)
limited = st.builds(
    Op,
    kind=st.sampled_from(["limited", "scope"]),
    amount=st.integers(0, 2),
    flag=st.booleans(),
    bodies=st.tuples(st.lists(meetings, min_size=1, max_size=2).map(tuple)),
)
crowds = st.builds(
    Op,
    kind=st.just("nursery"),
    amount=st.just(0),
    flag=st.just(False),
    bodies=st.tuples(
        *[st.lists(meetings | limited, min_size=1, max_size=6).map(tuple)] * 4
    ),
).map(lambda op: number_ops((op,), itertools.count(1)))


def total_ops(body: Body) -> int:
    return sum(1 + sum(total_ops(inner) for inner in op.bodies) for op in body)


def compare(body: Body) -> None:
    async def main(lib: Any, log: Log) -> None:
        await _Machine(lib, log).run(body, Env("main"))

    expected, actual = run_on_trio(main, is_fifo=False), run_on_pie(main, is_fifo=False)

    # trio trips over an assertion of its own where a shield is raised by one task while
    # another is about to raise Cancelled in checkpoint_if_cancelled.
    assume("AssertionError" not in repr(expected))
    assert actual == expected


@settings(deadline=None)
@given(body=programs)
def test_a_random_program_does_the_same_as_under_trio(body: Body) -> None:
    compare(body)


@settings(deadline=None)
@given(body=crowds.filter(lambda body: total_ops(body) <= MAX_OPS))
def test_a_random_crowd_meets_in_channels_and_limiters_as_under_trio(
    body: Body,
) -> None:
    compare(body)
