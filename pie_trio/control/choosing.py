"""Which of the ready commands share the next batch: a decision on plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pie_trio.control.commands import (
    Command,
    Kind,
    Priority,
    is_cut_causally,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from pie_trio.control.pages import PagePool

__all__ = ["Choice", "Limits", "choose_batch"]

SHORT_TOKENS = 32
"""A forward of so few tokens does not count as a prefill."""

RUSH = 4
"""So many chunks of prefills run at once where most inferlets wait for their first token."""

MAX_PASSED = 8
"""After so many batches without room for it a ready command comes first, whatever it is: before
those of high priority, and before streams, which are older and go on for long."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a batch.

    Attributes:
        max_batch: Most commands.
        max_tokens: Most new tokens.
        chunk_tokens: Most of them from prefills, while as many others would wait for those.
    """

    max_batch: int
    max_tokens: int
    chunk_tokens: int


@dataclass(slots=True)
class Choice:
    """The next batch, and why it is not larger.

    Attributes:
        commands: All of one kind.
        num_tokens: How many tokens of each run now.
        starved: Of the oldest inferlet that lacks pages, the first command that does.
        num_needed: Pages that it needs on the device and that are not there; all pages in host
            memory are among them if its inferlet is suspended.
        num_missing: So many of them are not free; 0 or less if its inferlet is suspended and
            could go on.
        num_other_kind: Ready commands of another kind.
        num_over_budget: Ready commands that do not fit the limits.
        num_without_pages: Ready commands for which pages are lacking.
    """

    commands: list[Command] = field(default_factory=list["Command"])
    num_tokens: list[int] = field(default_factory=list[int])
    starved: Command | None = None
    num_needed: int = 0
    num_missing: int = 0
    num_other_kind: int = 0
    num_over_budget: int = 0
    num_without_pages: int = 0


def choose_batch(
    ready: Collection[Command], pool: PagePool, limits: Limits, *, num_expected: int = 0
) -> Choice:
    """Choose among commands that do not conflict.

    Of the kinds of which something can run, the one that has waited longest; inside of it
    higher priority first, then older first. A command that does not fit is skipped, so that a
    long prefill does not hold back the decodes behind it; it takes what it can get, in chunks.
    Whoever was skipped too often comes first.
    Pages go to the oldest inferlet first, whatever runs now.

    Args:
        ready: The ready commands.
        pool: Their pages.
        limits: Of the batch.
        num_expected: Inferlets that are about to submit something short.
    """
    choice = Choice()
    denied = _deny_pages(ready, pool, choice)
    choice.num_without_pages = len(denied)
    by_kind: dict[Kind, list[Command]] = {}
    for command in ready:
        if command not in denied:
            by_kind.setdefault(command.kind, []).append(command)
    for commands in sorted(by_kind.values(), key=_longest_wait):
        if choice.commands:
            choice.num_other_kind += len(commands)
        else:
            room = _room_for_prefills(commands, limits, num_expected)
            _choose_of_kind(commands, choice, _Budget(limits, room))
    return choice


def _choose_of_kind(commands: list[Command], choice: Choice, budget: _Budget) -> None:
    for command in sorted(commands, key=_rank):
        if count := budget.take(command):
            choice.commands.append(command)
            choice.num_tokens.append(count)
            command.num_passed = 0
        else:
            choice.num_over_budget += 1
            command.num_passed += 1


def _room_for_prefills(
    commands: Collection[Command], limits: Limits, num_expected: int
) -> int:
    """Return how many tokens of prefills may run now.

    A small chunk, so that others need not wait for long. But it lets all prefills behind it wait for
    a step of the others: where more inferlets wait for their first token than for their next one,
    as when many come at once, that would be the longer wait.
    """
    room = limits.chunk_tokens
    forwards = [c for c in commands if c.forward is not None and not c.is_withdrawn]
    short = [c for c in forwards if c.num_tokens <= SHORT_TOKENS]
    lowest = max((c.priority for c in short), default=Priority.LOW)
    others = {c.tenant for c in short}
    prefills = {
        c.tenant
        for c in forwards
        if c.num_tokens > SHORT_TOKENS and c.priority >= lowest
    }
    if len(prefills) > len(others) + num_expected:
        num_short = sum(c.num_tokens for c in short)
        room = max(min(limits.max_tokens - num_short, RUSH * room), room)
    return room


def _longest_wait(commands: list[Command]) -> int:
    return min(command.waiting_since for command in commands)


def _rank(command: Command) -> tuple[int, int, int]:
    # Of those that were skipped too often, however many they are, the one that was most often.
    num_passed = command.num_passed if command.num_passed >= MAX_PASSED else 0
    return -num_passed, -command.priority, command.sequence


def _deny_pages(
    ready: Iterable[Command], pool: PagePool, choice: Choice
) -> set[Command]:
    """Return the commands whose pages cannot all be on the device now, and note who starves."""
    lacking = [command for command in ready if _lacks_pages(command, pool)]
    if not lacking:
        return set()
    denied: set[Command] = set()
    promised: set[int] = set()  # some read the same unwritten page
    for command in sorted(lacking, key=_seniority):
        tenant = command.tenant
        needed = set(pool.unbound(command.pages)) - promised
        if tenant.is_suspended:
            needed |= pool.swapped.keys() & tenant.used_pages()
        num_missing = len(promised) + len(needed) - pool.num_free
        if choice.starved is not None:
            # Nobody younger takes what an older one waits for, nor does its own next command.
            denied.add(command)
        elif num_missing <= 0 and not tenant.is_suspended:
            promised |= needed
        else:
            denied.add(command)
            if not tenant.is_evicted:  # or it is about to end
                choice.starved = command
                choice.num_needed, choice.num_missing = len(needed), num_missing
    return denied


def _lacks_pages(command: Command, pool: PagePool) -> bool:
    """Say whether something is to be done before the pages of a command are on the device."""
    if not len(command.pages):
        return False
    if command.tenant.is_suspended:
        return True
    if command.bound_at != pool.num_moves:
        if pool.unbound(command.pages):
            return True
        command.bound_at = pool.num_moves
    return False


def _seniority(command: Command) -> tuple[int, int]:
    return command.tenant.age, command.sequence


class _Budget:
    """The room of a batch."""

    def __init__(self, limits: Limits, num_prefill_tokens: int) -> None:
        self._commands = limits.max_batch
        self._tokens = limits.max_tokens
        self._prefill = num_prefill_tokens
        self._is_untouched = True

    def take(self, command: Command) -> int:
        """Return how many tokens of a command run now; 0 if it has to wait."""
        if self._commands == 0:
            return 0
        request = command.forward
        if request is None or command.is_withdrawn:
            self._commands -= 1
            return 1
        wanted = command.num_tokens
        is_prefill = wanted > SHORT_TOKENS
        count = min(wanted, self._tokens)
        if is_prefill:
            count = min(count, self._prefill)
        if 0 < count < wanted:
            end = command.num_run + count
            kv_len = request.kv_len - len(request.token_ids) + end
            if not is_cut_causally(request.mask, end, kv_len):
                # All or nothing; alone if need be.
                fits = wanted <= self._tokens or self._is_untouched
                count = wanted if fits else 0
        if count <= 0:
            return 0
        self._commands -= 1
        self._tokens -= count
        if is_prefill:
            self._prefill -= count
        self._is_untouched = False
        return count
