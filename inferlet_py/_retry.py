"""Try again what fails now and then, after waits that grow."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, TypeVar

from inferlet_py._timeouts import sleep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["retry"]

T = TypeVar("T")


async def retry(
    function: Callable[..., Awaitable[T]],
    *args: Any,
    attempts: int = 4,
    delay: float = 0.5,
    factor: float = 2.0,
    max_delay: float = 30.0,
    jitter: float = 0.5,
    on: type[Exception] | tuple[type[Exception], ...] = Exception,
    on_retry: Callable[[int, Exception], object] | None = None,
) -> T:
    """Call an asynchronous function until it returns, and return its result.

    Waits are on the clock of ``sleep``: put the whole into ``fail_after`` to limit its time, or
    each attempt into one of its own. Being cancelled is never retried.

    Args:
        function: For example ``lambda: http_get(url)``.
        args: Its arguments.
        attempts: How often it is called at most.
        delay: Seconds before the second attempt.
        factor: What each wait is multiplied by for the next one.
        max_delay: The longest wait, in seconds.
        jitter: A part of each wait, from 0 to 1, that is drawn anew, so that programs that failed
            together do not come back together.
        on: What is tried again; anything else is raised at once.
        on_retry: Is told of each failure but the last: which attempt it was, from 1, and the
            error. What it raises ends the attempts.

    Raises:
        ValueError: A number is out of range.
        Exception: What the last attempt raised, with a note on how many there were.
    """
    _check(attempts, delay, factor, max_delay, jitter)
    for attempt in range(1, attempts + 1):
        try:
            return await function(*args)
        except on as error:
            if attempt == attempts:
                if attempts > 1:
                    error.add_note(f"it was tried {attempts} times")
                raise
            if on_retry is not None:
                on_retry(attempt, error)
        # A float's power has its end at about 1e308.
        wait = max_delay
        if delay * factor ** min(attempt - 1, 64) < max_delay:
            wait = delay * factor ** (attempt - 1)
        await sleep(wait * (1 - jitter * random.random()))
    raise AssertionError("the last attempt returns or raises")


def _check(
    attempts: int, delay: float, factor: float, max_delay: float, jitter: float
) -> None:
    if attempts < 1:
        raise ValueError(f"attempts is at least 1, got {attempts}")
    if not (delay >= 0 and max_delay >= 0):
        raise ValueError(f"waits are not negative, got {delay} to {max_delay} seconds")
    if not factor >= 1:
        raise ValueError(f"factor is at least 1, got {factor}")
    if not 0 <= jitter <= 1:
        raise ValueError(f"jitter is from 0 to 1, got {jitter}")
