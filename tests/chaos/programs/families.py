"""An inferlet that launches others: it joins them, cancels them, or ends before they do."""

from __future__ import annotations

import random

from inferlet_py import (
    BrokenResourceError,
    Child,
    ChildFailedError,
    inferlet,
    move_on_after,
    open_nursery,
    sleep,
    spawn,
)
from tests.chaos.programs.reporting import Reporter

NAMES = (
    "streams",
    "stepwise",
    "branches",
    "listening",
    "storing",
    "echoes",
    "families",
)


class PlannedError(Exception):
    """What the plan says."""


@inferlet
async def main(seed: int, depth: int = 1) -> int:
    plan, report = random.Random(seed), Reporter()
    for number in range(plan.randint(1, 2)):
        name = plan.choice(NAMES if depth < 2 else NAMES[:-1])
        arguments: dict[str, object] = {"seed": plan.randrange(1 << 30)}
        if name == "families":
            arguments["depth"] = depth + 1
        end = plan.choice(["join", "join", "join", "cancel", "leave", "raise"])
        async with spawn(name, **arguments) as child:
            await report("launched", number, name)
            if name == "echoes":
                await echo(plan, child)
            await be_parent(plan, report, child, number, end)
    if plan.random() < 0.3:
        async with open_nursery() as nursery:
            for _ in range(2):
                seed = plan.randrange(1 << 30)
                nursery.start_soon(be_twin, seed)
            if plan.random() < 0.3:
                await sleep(0.03)
                nursery.cancel_scope.cancel()
    return report.count


async def be_parent(
    plan: random.Random, report: Reporter, child: Child, number: int, end: str
) -> None:
    if end == "join":
        count = 0
        async for message in child:
            text = message if isinstance(message, str) else message.decode()
            await report("of-child", number, text)
            count += text.startswith("[")  # the others are pieces of a stream
        result = await child.wait()
        is_echo = child.program == "echoes"
        assert is_echo or result == count, f"{result} reports, but {count} came"
        return
    with move_on_after(plan.choice([0.0, 0.02, 0.2])):
        while await child.receive() is not None:
            pass
    if end == "cancel":
        child.cancel()
        await report("cancelled", number)
    elif end == "raise":
        raise PlannedError
    else:  # the block waits for it, and nobody takes what it sends
        with move_on_after(0.3) as scope:
            await child.wait()
        if scope.cancelled_caught:
            child.cancel()


async def echo(plan: random.Random, child: Child) -> None:
    sent = [f"word {i}" for i in range(plan.randint(1, 6))]
    heard: list[str | bytes | None] = []

    async def listen() -> None:
        heard.extend([await child.receive() for _ in sent])

    async with open_nursery() as nursery:
        nursery.start_soon(listen)
        for word in sent:
            await child.send(word)
    assert heard == sent, f"sent {sent}, but the child said {heard}"
    await child.send("end")


async def be_twin(seed: int) -> None:
    try:
        async with spawn("stepwise", seed=seed) as child:
            while await child.receive() is not None:
                await sleep(0.005)
    except (ChildFailedError, BrokenResourceError):
        pass  # its sibling may be fine
