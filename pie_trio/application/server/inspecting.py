"""What programs say of themselves: asked once, when they are uploaded or first looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

from pie_trio.errors import TimedOutError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.lifecycle.programs import Program

__all__ = ["Inspector"]

MAX_DESCRIPTIONS = 256


class Inspector:
    """Compiles programs, and asks them for their description.

    Args:
        launcher: Runs them; they get no grants.
        seconds: A program that takes longer is refused.
    """

    def __init__(self, launcher: Launcher, *, seconds: float) -> None:
        self._launcher, self._seconds = launcher, seconds
        self._descriptions: dict[str, Mapping[str, Any]] = {}  # by digest

    async def inspect(self, program: Program, *, owner: str) -> Mapping[str, Any]:
        """Return ``name``, ``documentation``, and ``arguments``, a JSON Schema.

        Raises:
            GuestFailedError: It has a syntax error, or cannot be imported.
            LimitError: There are as many instances as there may be.
            TimedOutError: It computes for too long before its main function.
        """
        found = self._descriptions.get(program.digest)
        if found is None:
            with trio.move_on_after(self._seconds):
                await self._launcher.compile(program)
                instance = self._launcher.prepare(program, {}, owner=owner)
                found = await instance.describe()
            if found is None:
                raise TimedOutError(
                    f"the program takes longer than {self._seconds:g} s to be imported: "
                    "leave the work to its main function"
                )
            self._descriptions[program.digest] = found
            while len(self._descriptions) > MAX_DESCRIPTIONS:
                del self._descriptions[next(iter(self._descriptions))]
        return found
