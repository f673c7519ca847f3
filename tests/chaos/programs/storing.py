"""Writes keys of its own, and one that all inferlets of its owner write."""

from __future__ import annotations

import random

from inferlet_py import FailedError, get_instance_id, get_owner, inferlet, sleep, store
from tests.chaos.programs.reporting import Reporter


@inferlet
async def main(seed: int) -> int:
    plan, report = random.Random(seed), Reporter()
    key, value = f"of/{get_instance_id()}", 0
    for number in range(1, plan.randint(3, 8)):
        await report("writes", key, number)
        try:
            await store.set(key, str(number))
            value = number
            await report("wrote", key, number)
        except FailedError:
            await report("failed", key, number)
        try:
            text = await store.get_text(key)
            assert text == (str(value) if value else None), f"{text=}, {value=}"
            await store.set("shared", f"{get_owner()} {get_instance_id()} {number}")
            text = await store.get_text("shared")
            assert text is not None, "it was written"
            await report("shared", text)
            keys = await store.list_keys("of/")
            assert not value or key in keys, f"{key} is not in {keys}"
        except FailedError:
            pass
        if plan.random() < 0.3:
            await sleep(plan.choice([0.0, 0.03]))
    return report.count
