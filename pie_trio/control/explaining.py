"""Why batches had the size that they had, in words. Decisions on plain data: step records."""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pie_trio.control.trace import StepRecord

__all__ = ["Reason", "Summary", "explain_step", "main_reason", "summarize"]

MAX_NAMES = 3
KINDS = {"FORWARD": "forward", "PROJECT": "projection", "COPY": "copy"}


class Reason(Enum):
    """What kept a batch from being larger."""

    PAGES = "pages were lacking"
    LIMITS = "the limits of a batch"
    LATE = "inferlets came too late"
    OTHER_KIND = "commands of another kind"
    BLOCKED = "commands waited for others"
    ALL = "there was nothing else"


@dataclass(frozen=True, slots=True)
class Summary:
    """What many steps have in common.

    Attributes:
        num_steps: How many they were.
        num_commands: Parts of commands that they ran.
        num_tokens: New tokens in them.
        median_size: Of a batch; 0 without steps, as the others.
        largest_size: Of a batch.
        sizes: Steps by size of their batch, in classes: the first and last size of each.
        reasons: Steps by the reason for their size, most frequent first.
        device_seconds: How long they took together.
        gathering_seconds: How long commands gathered before them while the device was idle.
    """

    num_steps: int
    num_commands: int
    num_tokens: int
    median_size: float
    largest_size: int
    sizes: Sequence[tuple[int, int, int]]
    reasons: Sequence[tuple[Reason, int]]
    device_seconds: float
    gathering_seconds: float

    def text(self) -> str:
        """Return it in one or two sentences."""
        if not self.num_steps:
            return "The device has not made a step."
        steps = _count(self.num_steps, "step")
        most, times = self.reasons[0]
        return (
            f"{steps} ran {_count(self.num_commands, 'command')} with "
            f"{_count(self.num_tokens, 'new token')}: {self.median_size:g} a step in the "
            f"median, {self.largest_size} at most. What limited most batches "
            f"({times} of {steps}): {most.value}."
        )


def main_reason(step: StepRecord) -> Reason:
    """Return what kept the most commands out of a batch; the earlier reason where two tie."""
    kept_out = {
        Reason.PAGES: step.num_without_pages,
        Reason.LIMITS: step.num_over_budget,
        Reason.LATE: len(step.late),
        Reason.OTHER_KIND: step.num_other_kind,
        Reason.BLOCKED: step.num_blocked,
    }
    reason = max(kept_out, key=lambda found: kept_out[found])
    return reason if kept_out[reason] else Reason.ALL


def explain_step(step: StepRecord) -> str:
    """Say in words why a batch had its size."""
    kind = KINDS.get(step.kind, step.kind.lower())
    tokens = f" ({_count(step.num_tokens, 'new token')})" if kind == "forward" else ""
    sentences = [
        f"Step {step.number} ran {step.size} of {_count(step.num_ready, 'ready command')}, "
        f"a batch of kind {kind}{tokens}, in "
        f"{_time(step.finished_at - step.chosen_at)}.",
        f"Commands had gathered for {_time(step.chosen_at - step.gathering_since)} under "
        f"the policy {step.policy}.",
    ]
    if step.late:
        who, were = _count(len(step.late), "inferlet"), _were(len(step.late))
        names = _names(step.late)
        sentences.append(f"{who} {were} about to submit and came too late: {names}.")
    for count, why in (
        (step.num_other_kind, "of another kind, which a batch does not mix"),
        (step.num_over_budget, "beyond the limits of a batch"),
        (step.num_without_pages, "without enough free pages"),
    ):
        if count:
            sentences.append(f"{_count(count, 'ready command')} {_were(count)} {why}.")
    if step.num_blocked:
        blocked = _count(step.num_blocked, "command")
        sentences.append(
            f"{blocked} {_were(step.num_blocked)} not ready, after others on the same pages."
        )
    if main_reason(step) is Reason.ALL:
        sentences.append("There was nothing else to run.")
    return " ".join(sentences)


def summarize(steps: Iterable[StepRecord]) -> Summary:
    """Return what the steps have in common."""
    found = list(steps)
    sizes = [step.size for step in found]
    classes = Counter(_size_class(size) for size in sizes)
    return Summary(
        num_steps=len(found),
        num_commands=sum(sizes),
        num_tokens=sum(step.num_tokens for step in found if step.kind == "FORWARD"),
        median_size=statistics.median(sizes) if sizes else 0,
        largest_size=max(sizes, default=0),
        sizes=[(*bounds, count) for bounds, count in sorted(classes.items())],
        reasons=Counter(map(main_reason, found)).most_common(),
        device_seconds=sum(step.finished_at - step.chosen_at for step in found),
        gathering_seconds=sum(step.chosen_at - step.gathering_since for step in found),
    )


def _size_class(size: int) -> tuple[int, int]:
    """Return the first and last size that are counted together: 1, 2, 3-4, 5-8, ..."""
    last = 1 << (size - 1).bit_length()
    return last // 2 + 1, last


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES])
    left = len(names) - MAX_NAMES
    return f"{shown} and {left} more" if left > 0 else shown


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
