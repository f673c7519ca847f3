"""Trying again: how often, after which waits, and what is not tried again."""

from __future__ import annotations

from typing import Any

import pytest

from inferlet_py import FailedError, current_time, move_on_after, retry, sleep_forever
from tests.inferlet_py.scripted_host import ScriptedHost, run


class Flaky:
    """Fails some times, and then returns what it was given."""

    def __init__(self, num_failures: int, error: Exception | None = None) -> None:
        self.num_failures, self.calls = num_failures, 0
        self.error = error or FailedError("down")

    async def __call__(self, value: str = "ok") -> str:
        self.calls += 1
        if self.calls <= self.num_failures:
            raise self.error
        return value


def test_waits_grow_up_to_their_limit() -> None:
    host, flaky = ScriptedHost(), Flaky(5)

    async def program() -> Any:
        result = await retry(
            flaky, "x", attempts=9, delay=1, factor=3, max_delay=10, jitter=0
        )
        return [result, flaky.calls]

    assert run(host, program) == ["x", 6]
    assert host.sleeps == [1, 4, 13, 23, 33]


def test_jitter_shortens_waits_and_is_drawn_anew() -> None:
    host = ScriptedHost()

    async def program() -> None:
        with pytest.raises(FailedError):
            await retry(Flaky(99), attempts=30, delay=1, factor=1, jitter=0.5)

    run(host, program)
    waits = [b - a for a, b in zip([0.0, *host.sleeps], host.sleeps, strict=False)]
    assert len(waits) == 29
    assert all(0.5 <= wait <= 1 for wait in waits)
    assert max(waits) - min(waits) > 0.1


def test_the_last_error_is_raised_and_says_how_often() -> None:
    async def program() -> None:
        with pytest.raises(FailedError, match="down") as caught:
            await retry(Flaky(9), attempts=3, delay=0)
        assert caught.value.__notes__ == ["it was tried 3 times"]

    run(ScriptedHost(), program)


def test_other_errors_are_raised_at_once() -> None:
    flaky = Flaky(9, KeyError("x"))

    async def program() -> None:
        with pytest.raises(KeyError):
            await retry(flaky, on=(FailedError, OSError))

    run(ScriptedHost(), program)
    assert flaky.calls == 1


def test_being_cancelled_is_not_retried() -> None:
    calls: list[float] = []

    async def hang() -> None:
        calls.append(current_time())
        await sleep_forever()

    async def program() -> bool:
        with move_on_after(5) as scope:
            await retry(hang)
        return scope.cancelled_caught

    assert run(ScriptedHost(), program)
    assert calls == [0]


def test_failures_can_be_watched_and_ended() -> None:
    seen: list[tuple[int, str]] = []

    def watch(attempt: int, error: Exception) -> None:
        seen.append((attempt, str(error)))
        if attempt == 2:
            raise LookupError("enough")

    async def program() -> None:
        with pytest.raises(LookupError):
            await retry(Flaky(9), delay=0, on_retry=watch)

    run(ScriptedHost(), program)
    assert seen == [(1, "down"), (2, "down")]


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"delay": -1},
        {"factor": 0.5},
        {"jitter": 2},
        {"delay": float("nan")},
    ],
)
def test_numbers_out_of_range_are_refused(options: Any) -> None:
    async def program() -> None:
        with pytest.raises(ValueError, match="got"):
            await retry(Flaky(0), **options)

    run(ScriptedHost(), program)
