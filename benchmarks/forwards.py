"""What a forward of one token costs the host where no guest stands between.

    python -m benchmarks.forwards --sessions 1 8 32 --forwards 2000

Sessions are called as a guest calls them, from ``forward-text`` to the result of ``take-forward``, on
an engine that answers at once: what `benchmarks.calls` measures beyond it are lifting and lowering,
the fiber, and caches that the guest's turn has left cold. The processor's time is of the whole
process.
"""

from __future__ import annotations

import time

import numpy as np
import trio

from benchmarks.harness import NullEngine, describe_machine, make_parser, spread
from pie_trio.application.host.allocate import alloc_kvpage
from pie_trio.application.host.forward import forward_text, take_forward
from pie_trio.application.host.instance_log import InstanceLog
from pie_trio.application.host.queues import create_queue
from pie_trio.application.host.session import Launch, Session
from pie_trio.application.services import Services
from pie_trio.application.serving import LoadedEngine, open_models
from pie_trio.config import ControlConfig, InstanceLimits
from pie_trio.inference.fake import FakeTokenizer


async def run_forwards(session: Session, count: int) -> None:
    """Forward one token after the other, each over the last one's slot."""
    for number in range(count):
        outputs = [(np.array([0], np.int32), None, 1, frozenset[str]())]
        token = np.array([1], np.int32)
        request = (token, token, [1], 1 if number else 0, None, outputs, "")
        answer = take_forward(session, forward_text(session, 0, request))
        if not isinstance(answer, list):
            session.settle()
            await answer.work()


async def measure(num_sessions: int, count: int) -> tuple[float, float]:
    """Return the processor's and the wall's microseconds of a forward."""
    limits, engine = InstanceLimits(), LoadedEngine(NullEngine(), FakeTokenizer())
    async with open_models([engine], ControlConfig(), limits) as models:
        services = Services(models)
        sessions: list[Session] = []
        for number in range(num_sessions):
            log = InstanceLog(max_bytes=100)
            sessions.append(Session(Launch(str(number), "{}"), services, limits, log))
            create_queue(sessions[-1], 0, "")
            alloc_kvpage(sessions[-1], 0, [1])
        started, cpu = time.perf_counter(), time.process_time()
        async with trio.open_nursery() as nursery:
            for session in sessions:
                nursery.start_soon(run_forwards, session, count)
        cpu, elapsed = time.process_time() - cpu, time.perf_counter() - started
        for session in sessions:
            await session.close()
    per_forward = 1e6 / (num_sessions * count)
    return cpu * per_forward, elapsed * per_forward


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--forwards", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(describe_machine())
    for num_sessions in options.sessions:
        rounds = [
            await measure(num_sessions, options.forwards) for _ in range(options.rounds)
        ]
        cpu, wall = ([pair[index] for pair in rounds] for index in (0, 1))
        print(
            f"  {num_sessions:3d} sessions: {spread(cpu)} us of CPU, {spread(wall)} us"
        )


if __name__ == "__main__":
    trio.run(main)
