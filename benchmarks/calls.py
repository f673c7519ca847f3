"""What a host call costs: answered at once, suspended and resumed, and through the batcher.

    python benchmarks/calls.py --calls 2000 --inferlets 1 8 32

The paper's figure 10: control-layer calls below 30 us, inference-layer calls 10 to 300 us.
Each figure is the wall time of one call as the guest sees it, in microseconds.
"""

from __future__ import annotations

import json
import statistics
from typing import TYPE_CHECKING

import trio

from benchmarks.harness import (
    describe_machine,
    make_parser,
    make_program,
    open_fake_launcher,
    spread,
)

if TYPE_CHECKING:
    from pie_trio.application.lifecycle.instances import Launcher

HEAD = """
import time
from inferlet_py import inferlet, Context, sleep, log
from inferlet_py._host import get_host
from inferlet_py._models import get_model
from inferlet_py._tasks import wait_ticket

@inferlet
async def main(calls: int) -> list[float]:
    host = get_host()
    queue = get_model().queue
    context = Context()
    await context.fill([1, 2])
    await context.forward(top=1)
    samples = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(calls // 10):
            {call}
        samples.append((time.perf_counter() - start) / (calls // 10) * 1e6)
    return samples
"""
CALLS = {
    "answered at once (now)": "host.now()",
    "answered at once (synchronize, then finish)": "host.finish(host.synchronize(queue))",
    "suspends and resumes (wait for a deadline)": "host.wait([], host.now() + 1e-9)",
    "suspends and resumes, with `now` taken off": "host.wait([1 << 31], 0)",
}
SUSPEND = "suspends and resumes (yields to the host)"
STEP = "a forward of one token and its token back"


def program_of(call: str) -> str:
    return HEAD.replace("{call}", call)


async def measure(
    launcher: Launcher, call: str, *, calls: int, count: int
) -> list[float]:
    """Return microseconds a call of ``count`` inferlets at once."""
    program = make_program(program_of(call))
    await launcher.compile(program)
    samples: list[float] = []

    async def one() -> None:
        result = await launcher.prepare(program, {"calls": calls}).run()
        samples.extend(json.loads(result))

    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(one)
    return samples


async def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--inferlets", type=int, nargs="+", default=[1, 8, 32])
    options = parser.parse_args()
    print(describe_machine())
    async with open_fake_launcher() as launcher:
        rows = {
            "loop alone": "pass",
            "answered at once: now()": "host.now()",
            "answered at once: detokenize 8 tokens": "host.detokenize('', [1] * 8)",
            "suspends and resumes: wait(deadline)": "host.wait([], host.now() + 1e-7)",
            "suspends and resumes: sleep in the kernel": "await sleep(1e-7)",
            "forward of one token, sampled": (
                "(await context.sample(GREEDY), context.truncate(len(context) - 1), "
                "context.append([1]))"
            ),
        }
        del rows["forward of one token, sampled"]
        for name, call in rows.items():
            samples = await measure(launcher, call, calls=options.calls, count=1)
            print(f"  {name:45s} us {spread(samples)}")
        for count in options.inferlets:
            samples = await measure(
                launcher,
                "await context.forward([1], top=1); context.truncate(2)",
                calls=max(options.calls // 10, 20),
                count=count,
            )
            print(
                f"  forward of one token, {count} inferlets: "
                f"us {spread(samples)}; {statistics.median(samples) / count:.1f} us each"
            )


if __name__ == "__main__":
    trio.run(main)
