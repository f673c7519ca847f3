"""Short steps of a lone inferlet run in the loop's own thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from pie_trio.config import ControlConfig
from tests.application.host.clients import open_rig

if TYPE_CHECKING:
    from pie_trio.engine_api import Batch


@pytest.mark.parametrize(
    ("inline_seconds", "num_clients", "is_here"),
    [(1000.0, 1, True), (0.0, 1, False), (1000.0, 2, False)],
    ids=["alone", "switched off", "others"],
)
async def test_in_which_thread_a_step_runs(
    inline_seconds: float, num_clients: int, is_here: bool
) -> None:
    threads: list[str] = []

    def note(_batch: Batch) -> None:
        threads.append(threading.current_thread().name)

    control = ControlConfig(policy="rendezvous:0.5,0", inline_seconds=inline_seconds)
    async with open_rig(control=control, on_step=note) as rig:
        async with rig.open_client("a") as client, rig.open_client("b") as other:
            if num_clients == 1:
                await other.session.close()
            client.session.alloc_kvpage(0, [0, 1, 2, 3])
            await client.run(bytes(8), pages=[0, 1, 2, 3])  # a prefill does not count
            for start in range(8, 12):
                await client.run(b"x", pages=[0, 1, 2, 3], start=start)
    here = threading.current_thread().name
    assert threads[0] != here
    assert all((name == here) == is_here for name in threads[1:])
