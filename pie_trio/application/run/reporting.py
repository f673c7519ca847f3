"""What ``pie run`` tells after a run: a trace file, and why batches had their sizes."""

from __future__ import annotations

import json
import os
import select
import sys
from contextlib import contextmanager, suppress
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from pie_trio.application.run.console import write_all
from pie_trio.application.trace_events import make_trace_events
from pie_trio.control.explaining import summarize
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from pie_trio.application.run.signals import Signals
    from pie_trio.application.services import Services
    from pie_trio.control.explaining import Summary

__all__ = ["Report", "check_output_path", "reporting", "write_output"]

WRITE_SECONDS = 1.0
BAR_WIDTH = 24


class Report:
    """Knows what is served, as soon as that is so.

    Attributes:
        services: None until then.
    """

    def __init__(self) -> None:
        self.services: Services | None = None

    def watch(self, services: Services) -> None:
        """Report of these services, once they have ended."""
        self.services = services


@contextmanager
def reporting(
    report: Report, trace_path: Path | None, signals: Signals, *, is_explained: bool
) -> Generator[None]:
    """Report at the end of the block, however it ends; only if something was served in it.

    A signal that comes while it reports waits until that is done.

    Args:
        report: Is told in the block what is served.
        trace_path: Where the trace is written; None for nowhere.
        signals: Of the run.
        is_explained: Print on stderr why batches had their sizes.

    Raises:
        ConfigError: The trace cannot be written. If the block raises too, its own error
            counts, and this one is printed on stderr.
    """
    if trace_path is not None:
        check_output_path(trace_path, "--trace")
    try:
        yield
    except BaseException as error:
        with signals.held():
            try:
                _finish(
                    report,
                    trace_path,
                    is_explained=is_explained
                    and (not isinstance(error, KeyboardInterrupt) or _is_read()),
                )
            except ConfigError as other:
                _print(f"pie: {other}\n")
        raise
    with signals.held():
        _finish(report, trace_path, is_explained=is_explained)


def check_output_path(path: Path, option: str) -> None:
    """Raise unless a file can be written there; better before a long run than after it.

    Args:
        path: Of the file.
        option: That has named it.

    Raises:
        ConfigError: It cannot.
    """
    if path.is_dir():
        raise ConfigError(
            f"{option} {path} is a folder: name a file, as {path}/{option[2:]}.json"
        )
    folder = path.resolve().parent
    if not _is_special(path) and not folder.is_dir():
        raise ConfigError(
            f"{option} {path}: there is no folder {folder}: make it, or name another file"
        )
    target = path if _is_special(path) else folder
    if not os.access(target, os.W_OK):
        raise ConfigError(
            f"{option} {path}: {target} cannot be written to: name a file elsewhere"
        )


def _is_special(path: Path) -> bool:
    """Say whether it is a pipe or a device, which is written to and not replaced."""
    return path.exists() and not path.is_file()


def write_output(path: Path, text: str, option: str) -> None:
    """Write a file that is there as a whole or not at all.

    Args:
        path: Of the file.
        text: What to write.
        option: That has named it.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        if _is_special(path):
            path.write_text(text)
            return
        target = path.resolve()
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            part.write_text(text)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the {option[2:]} cannot be written to {path} ({error.strerror}): make room "
            f"there, or name a file elsewhere with {option}"
        ) from error


def _finish(report: Report, trace_path: Path | None, *, is_explained: bool) -> None:
    if report.services is None:
        return
    if is_explained:
        for name, model in report.services.models.items():
            steps = model.batcher.trace.steps
            title = f"{name}, policy {model.config.policy}"
            _print(_make_table(title, summarize(steps), model.batcher.num_steps))
    if trace_path is not None:
        served = report.services
        traces = {name: model.batcher.trace for name, model in served.models.items()}
        text = json.dumps(make_trace_events(traces, served.timeline.spans))
        write_output(trace_path, text, "--trace")


def _make_table(name: str, summary: Summary, num_steps: int) -> str:
    title = f"model {name}: steps of the device"
    if summary.num_steps < num_steps:
        title += f" (the latest {summary.num_steps} of {num_steps})"
    table = Table(title=title, title_justify="left", show_edge=False)
    table.add_column("")
    table.add_column("steps", justify="right")
    table.add_column("", no_wrap=True)
    most = max((count for *_, count in summary.sizes), default=1)
    for first, last, count in summary.sizes:
        label = f"batch of {first}" if first == last else f"batch of {first} to {last}"
        table.add_row(label, str(count), "#" * max(1, count * BAR_WIDTH // most))
    table.add_section()
    for reason, count in summary.reasons:
        share = f"{count / summary.num_steps:.0%}"
        table.add_row(f"not larger: {reason.value}", str(count), share)
    out = StringIO()
    console = Console(file=out, width=100, highlight=False)
    console.print(table)
    console.print(
        f"{summary.text()} On the device: {summary.device_seconds:.3g} s; commands gathered "
        f"before that: {summary.gathering_seconds:.3g} s.",
        markup=False,
    )
    return out.getvalue()


def _is_read() -> bool:
    """Say whether stderr takes something within a moment: nobody waits for it after Ctrl-C."""
    with suppress(OSError, ValueError):
        return bool(select.select([], [sys.stderr.fileno()], [], WRITE_SECONDS)[1])
    return False


def _print(text: str) -> None:
    with suppress(OSError):
        write_all(sys.stderr, text.encode(errors="replace"))
