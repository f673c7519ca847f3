"""Who is about to submit: the batcher waits for them, so that they share a batch.

Dispatching whatever is there the moment the device is idle splits N inferlets that step token by
token into two cohorts that alternate, and each half batch reads all the weights again: measured,
2.00 batches a step instead of 1.00.
"""

from __future__ import annotations

import trio

__all__ = ["Rendezvous"]


class Rendezvous:
    """The inferlets that were resumed and have neither submitted nor blocked since."""

    def __init__(self) -> None:
        self._expected: set[object] = set()
        self._all_settled = trio.Event()

    @property
    def num_expected(self) -> int:
        """How many inferlets are about to submit."""
        return len(self._expected)

    def expect(self, inferlet: object) -> None:
        """Note that a wait of ``inferlet`` is over: it will run next."""
        self._expected.add(inferlet)

    def settle(self, inferlet: object) -> None:
        """Note that ``inferlet`` waits again, has used up its slice, or has ended."""
        self._expected.discard(inferlet)
        if not self._expected:
            self._all_settled.set()

    async def wait_settled(self, *, timeout_seconds: float) -> None:
        """Wait until nobody is expected any more, but no longer than the timeout."""
        if not self._expected:
            return
        self._all_settled = trio.Event()
        with trio.move_on_after(timeout_seconds):
            await self._all_settled.wait()
        # Whoever is late computes for long; do not wait for it again until it waits itself.
        self._expected.clear()
