"""What the trace costs, which is always on: microseconds a command, a step and a page event.

    python -m benchmarks.tracing

And what it keeps of a command, once the ring buffers are full.
"""

from __future__ import annotations

import gc
import timeit
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import trio

from benchmarks.harness import describe_machine, make_parser
from pie_trio.control.commands import Command, Kind
from pie_trio.control.tenants import Tenant
from pie_trio.control.trace import MAX_COMMANDS, StepRecord, Trace
from pie_trio.engine_api import ForwardRequest

if TYPE_CHECKING:
    from collections.abc import Callable


def make_command() -> Command:
    forward = ForwardRequest(
        token_ids=np.zeros(1, np.int32),
        positions=np.zeros(1, np.int32),
        page_ids=np.zeros(1, np.int32),
        kv_len=1,
    )
    made = Command(
        Kind.FORWARD,
        Tenant("inferlet-1", 1),
        pages=np.zeros(1, np.int32),
        writes=(0,),
        on_done=lambda _: None,
        submitted_at=trio.current_time(),
        forward=forward,
    )
    made.batch = 1
    return made


def note_step(trace: Trace) -> None:
    now = trio.current_time()
    trace.note_step(
        StepRecord(
            1, "FORWARD", 8, 8, now, now, now, 8, (), 0, 0, 0, 0, 9, "rendezvous"
        )
    )


def cost(call: Callable[[], object], calls: int) -> float:
    """Return the microseconds of one call: the best of five, since machines are noisy."""
    return min(timeit.repeat(call, number=calls, repeat=5)) / calls * 1e6


async def measure(calls: int) -> None:
    trace, command = Trace(trio.current_time), make_command()
    now = trio.current_time()
    costs = {
        "a command": cost(lambda: trace.note_command(command, None, now), calls),
        "a step": cost(lambda: note_step(trace), calls),
        "a page event": cost(
            lambda: trace.note_page("bind", 1, 2, "inferlet-1"), calls
        ),
    }
    for name, found in costs.items():
        print(f"{name:14} {found:.2f} us")
    # A decoded token in a batch of 8: one command, an eighth of a step, and of each page of
    # 16 tokens the two events.
    token = costs["a command"] + costs["a step"] / 8 + costs["a page event"] / 8
    print(f"a token        {token:.2f} us, in batches of 8 with pages of 16")
    tracemalloc.start()
    filled = Trace(trio.current_time)
    for _ in range(MAX_COMMANDS):
        filled.note_command(command, None, trio.current_time())
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    print(
        f"kept           {size / MAX_COMMANDS:.0f} bytes a command, {MAX_COMMANDS} at most"
    )


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--calls", type=int, default=200_000)
    options = parser.parse_args()
    print(describe_machine())
    trio.run(measure, options.calls)


if __name__ == "__main__":
    main()
