"""What tests of the control layer put below it: engines whose steps the test controls."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import trio

from pie_trio.control.commands import NO_PAGES, Command, Kind, Priority
from pie_trio.control.tenants import Tenant
from pie_trio.engine_api import (
    ForwardRequest,
    OutputSpec,
    PageCopy,
    ProjectRequest,
    SamplerSpec,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from pie_trio.engine_api import Batch, RequestResult

    Outcome = RequestResult | Exception | None

TIME_LIMIT_SECONDS = 30.0
"""Of tests with threads; the others have a clock that jumps."""


class Gate:
    """As an engine's ``on_step``: holds each step until the test lets it go on.

    Made inside of trio; opened by whoever owns the engine before the batcher is closed.
    """

    def __init__(self, *, is_open: bool = False) -> None:
        self.num_started = 0
        self._is_open = is_open
        self._permits = threading.Semaphore(0)
        self._token = trio.lowlevel.current_trio_token()
        self._has_started = trio.Event()

    def __call__(self, _batch: Batch) -> None:
        self._token.run_sync_soon(self._note_start)
        if not self._is_open and not self._permits.acquire(timeout=TIME_LIMIT_SECONDS):
            raise TimeoutError("the test did not let the step go on")

    async def wait_started(self, count: int) -> None:
        """Wait until so many steps in all have started."""
        while self.num_started < count:
            self._has_started = trio.Event()
            await self._has_started.wait()

    def let_go(self) -> None:
        """Let the step that is held, or else the next one, go on."""
        self._permits.release()

    def hold(self) -> None:
        """Hold the steps that start from now on."""
        self._is_open = False

    def open(self) -> None:
        """Let all steps go on, those to come as well."""
        self._is_open = True
        self._permits.release()

    def _note_start(self) -> None:
        self.num_started += 1
        self._has_started.set()


class Outcomes:
    """Makes commands and keeps what becomes of each, by the token that stands for it."""

    def __init__(self) -> None:
        self.by_token: dict[int, Outcome] = {}
        self.tenant = Tenant("tenant", 0)
        self._waiting = trio.lowlevel.ParkingLot()

    def command(
        self,
        token: int,
        *,
        page: int,
        reads: Iterable[int] = (),
        copies: Sequence[PageCopy] = (),
        num_tokens: int = 1,
        start: int = 0,
        tenant: Tenant | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Command:
        """Return a forward that writes ``page``; it can be told by its first token."""
        request = ForwardRequest(
            token_ids=np.array([token, *[0] * (num_tokens - 1)], np.int32),
            positions=np.arange(start, start + num_tokens, dtype=np.int32),
            page_ids=np.array([page], np.int32),
            kv_len=start + num_tokens,
            outputs=(OutputSpec(np.zeros(1, np.int32), SamplerSpec()),),
        )
        used = {*reads, page, *(copy.source for copy in copies)}
        return Command(
            Kind.FORWARD,
            tenant or self.tenant,
            pages=np.array(sorted(used), np.int32),
            writes=(page,),
            on_done=self.note(token),
            submitted_at=trio.current_time(),
            forward=request,
            copies=tuple(copies),
            priority=priority,
        )

    def copy(
        self, token: int, copies: Sequence[PageCopy], *, tenant: Tenant | None = None
    ) -> Command:
        """Return a command that copies tokens."""
        used = {page for copy in copies for page in (copy.source, copy.target)}
        return Command(
            Kind.COPY,
            tenant or self.tenant,
            pages=np.array(sorted(used), np.int32),
            writes={copy.target for copy in copies},
            on_done=self.note(token),
            submitted_at=trio.current_time(),
            copies=tuple(copies),
        )

    def project(
        self, token: int, slots: Sequence[int], *, tenant: Tenant | None = None
    ) -> Command:
        """Return a projection of embed slots."""
        rows = np.arange(len(slots), dtype=np.int32)
        request = ProjectRequest(
            np.array(slots, np.int32), rows, (OutputSpec(rows, SamplerSpec()),)
        )
        return Command(
            Kind.PROJECT,
            tenant or self.tenant,
            pages=NO_PAGES,
            writes=(),
            on_done=self.note(token),
            submitted_at=trio.current_time(),
            project=request,
            embeds=tuple(slots),
        )

    def note(self, token: int) -> Callable[[Outcome], None]:
        """Return what keeps the outcome of a command."""

        def on_done(outcome: Outcome) -> None:
            assert token not in self.by_token, "a command is done once"
            self.by_token[token] = outcome
            self._waiting.unpark_all()

        return on_done

    async def wait(self, *tokens: int) -> None:
        """Wait until all these commands are done."""
        while not set(tokens) <= self.by_token.keys():
            await self._waiting.park()

    def error(self, token: int) -> Exception:
        """Return the error of a command."""
        outcome = self.by_token[token]
        assert isinstance(outcome, Exception), outcome
        return outcome

    def tokens(self, token: int) -> list[int]:
        """Return what the first output of a command sampled."""
        outcome = self.by_token[token]
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None, "it is no copy"
        found: list[int] = outcome[0].token_ids.tolist()
        return found


def tokens_of(batches: Sequence[Batch]) -> list[list[int]]:
    """Return the first token of each forward of each batch."""
    return [
        sorted(int(request.token_ids[0]) for request in batch.forwards)
        for batch in batches
    ]


def note(calls: list[str], name: str) -> Callable[[], None]:
    """Return a callback that appends a name."""
    return lambda: calls.append(name)
