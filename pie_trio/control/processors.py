"""Processors as the control layer keeps them: numbers of the engine, and who uses them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from pie_trio.engine_api import NO_PROCESSOR
from pie_trio.errors import BusyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.engine_api import Engine, ProcessorSpec
    from pie_trio.errors import EngineLostError

__all__ = ["Processor", "Processors"]

MAX_COMPILING = 2
"""Grammars of a model that are compiled at once; others wait."""


class Processors:
    """The processors of one model.

    Attributes:
        generation: How often the engine was lost, and all processors with it.
        wait_restored: Waits until there is an engine.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._last = NO_PROCESSOR
        self.generation = 0
        self.wait_restored: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        self._lost: EngineLostError | None = None
        self._limiter = trio.CapacityLimiter(MAX_COMPILING)

    def new(self, on_gone: Callable[[], None] = lambda: None) -> Processor:
        """Return a processor that is to be :meth:`compiled <compile>`.

        Args:
            on_gone: Called once the engine has forgotten it, which may be long after its owner
                has.
        """
        return Processor(self, self._new_number(), on_gone)

    async def compile(
        self, processor: Processor, spec: ProcessorSpec, turn: trio.Lock | None = None
    ) -> None:
        """Make what :meth:`new` returned; in a thread, for a grammar may take long.

        If cancelled, it is dropped.

        Args:
            processor: To be made.
            spec: Of what.
            turn: Of its owner, who has one made at once; None for somebody alone.

        Raises:
            BadArgumentError: The spec or its grammar cannot be used.
            EngineError: The engine was lost meanwhile.
        """
        create = partial(self.engine.create_processor, processor.number, spec)
        try:
            async with turn or trio.Lock():
                await self.wait_restored()
                processor.generation = self.generation
                await trio.to_thread.run_sync(create, limiter=self._limiter)
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            processor.drop()
            raise
        finally:
            processor.note_made()

    def fork(self, source: int, *, is_ahead: bool = False) -> int:
        """Return the number of a new processor that goes on from where ``source`` is."""
        number = self._new_number()
        self.engine.fork_processor(source, [number], is_ahead=is_ahead)
        return number

    def lose(self, error: EngineLostError) -> None:
        """Note that all of them have gone with the engine."""
        self.generation, self._lost = self.generation + 1, error

    def check_kept(self, generation: int) -> None:
        """Raise if processors of this generation have gone with an engine.

        Raises:
            EngineLostError: They have.
        """
        if generation != self.generation and self._lost is not None:
            raise self._lost.again()

    def drop(self, number: int) -> None:
        """Forget a processor; nothing happens for ``NO_PROCESSOR``."""
        if number != NO_PROCESSOR:
            self.engine.drop_processors([number])

    def _new_number(self) -> int:
        self._last += 1
        return self._last


class Processor:
    """A processor of an inferlet.

    Commands on their way *use* it: nothing may change it, for a step may read it in another
    thread.

    Attributes:
        number: The engine's.
        generation: Of those that were made while the same engine lived.
    """

    __slots__ = (
        "_is_dropped",
        "_is_made",
        "_num_users",
        "_on_gone",
        "_owner",
        "generation",
        "number",
    )

    def __init__(
        self,
        owner: Processors,
        number: int,
        on_gone: Callable[[], None],
        *,
        is_made: bool = False,
    ) -> None:
        self._owner, self.number, self.generation = owner, number, owner.generation
        self._on_gone = on_gone
        self._is_made, self._is_dropped = is_made, False
        self._num_users = 0

    def belongs_to(self, owner: Processors) -> bool:
        """Say whether it is one of a model."""
        return self._owner is owner

    def check_made(self) -> None:
        """Raise unless it was made and is there still.

        Raises:
            BusyError: It is being made.
            EngineLostError: It has gone with the engine.
        """
        if not self._is_made:
            raise BusyError(
                "the processor is being made: wait for the ticket that making it returned"
            )
        self._owner.check_kept(self.generation)

    def note_made(self) -> None:
        """Note that the engine is done with making it."""
        self._is_made = True
        if self._is_dropped:
            self._forget()

    def use(self) -> None:
        """Count a command that uses it, from its submission on."""
        self._num_users += 1

    def release(self) -> None:
        """Count one command less."""
        self._num_users -= 1
        if self._is_dropped and not self._num_users:
            self._forget()

    def drop(self) -> None:
        """Forget it, once it was made and no command uses it."""
        if self._is_dropped:
            return
        self._is_dropped = True
        if self._is_made and not self._num_users:
            self._forget()

    def _forget(self) -> None:
        self._owner.drop(self.number)
        self._on_gone()

    def fork(self, on_gone: Callable[[], None] = lambda: None) -> Processor:
        """Return one that goes on from here.

        Args:
            on_gone: As of :meth:`Processors.new`.

        Raises:
            BusyError: Commands on their way use it.
        """
        self.check_idle()
        number = self._owner.fork(self.number)
        return Processor(self._owner, number, on_gone, is_made=True)

    def fork_ahead(self) -> int:
        """Return the engine's number of one for a decode stream: it is ahead of its reader.

        Raises:
            BusyError: Commands on their way use it.
        """
        self.check_idle()
        return self._owner.fork(self.number, is_ahead=True)

    def accept(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens it allows, which it has accepted.

        Raises:
            BadArgumentError: One is no token id.
            BusyError: Commands on their way use it.
        """
        self.check_idle()
        return self._owner.engine.accept_tokens(self.number, token_ids)

    def roll_back(self, count: int) -> None:
        """Take back the latest tokens.

        Raises:
            BadArgumentError: It did not accept so many.
            BusyError: Commands on their way use it.
        """
        self.check_idle()
        self._owner.engine.roll_back(self.number, count)

    def allowed(self) -> NDArray[np.uint32]:
        """Return a bit for each token that is allowed next.

        Raises:
            BusyError: Commands on their way use it.
        """
        self.check_idle()
        return self._owner.engine.allowed_tokens(self.number)

    def has_ended(self) -> bool:
        """Say whether nothing but the end can follow, by its grammar.

        Raises:
            BusyError: Commands on their way use it.
        """
        self.check_idle()
        return self._owner.engine.has_ended(self.number)

    def check_idle(self) -> None:
        """Raise unless it can be changed, forked or asked now.

        Raises:
            BusyError: It is being made, or commands on their way use it.
        """
        self.check_made()
        if self._num_users:
            raise BusyError(
                f"{self._num_users} forwards on their way use the processor: wait for them "
                "before it is changed, forked or asked"
            )
