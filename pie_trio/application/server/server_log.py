"""The server's log on stderr: lines of text, or a JSON object a line, with the instance's id."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Generator

    from pie_trio.application.server.running import RunningInstance

__all__ = [
    "LEVELS",
    "LogFormat",
    "log_end",
    "log_launch",
    "note_instance",
    "open_server_log",
    "say",
]

LogFormat = Literal["text", "json"]
LEVELS = ("debug", "info", "warning", "error")
ROOT = "pie_trio"
FIELDS = "pie_fields"
"""Of a record: what a line of JSON has besides."""

logger = logging.getLogger(__name__)

_instance: ContextVar[str] = ContextVar("pie_instance", default="")
_format: ContextVar[LogFormat] = ContextVar("pie_log_format", default="text")


def note_instance(instance_id: str) -> None:
    """Let the lines of this task and of those that it starts tell whose they are."""
    _instance.set(instance_id)


@contextmanager
def open_server_log(form: LogFormat, level: str) -> Generator[None]:
    """Write what Pie logs to stderr for as long as the block is open.

    Args:
        form: Of each line.
        level: The lowest that is written, one of ``LEVELS``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    root = logging.getLogger(ROOT)
    before = root.level, root.propagate
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False  # or a handler of the root would write each line again
    token = _format.set(form)
    try:
        yield
    finally:
        _format.reset(token)
        root.removeHandler(handler)
        root.level, root.propagate = before


def say(text: str) -> None:
    """Tell people something on stderr, whatever the level is; as JSON where lines are JSON.

    Where nothing can be written, as to a log on a full disk, it is lost, as other lines are.
    """
    if _format.get() == "json":
        text = _encode(time.time(), "info", ROOT, text, {})
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201


def log_launch(instance: RunningInstance) -> None:
    """Log a launch."""
    fields = {
        "instance": instance.instance_id,
        "program": instance.program,
        "owner": instance.owner.name,
    }
    logger.info(
        "%s was launched for %s",
        instance.instance_id,
        instance.owner.name,
        extra={FIELDS: {"event": "launch", **fields}},
    )


def log_end(instance: RunningInstance, error: Exception | None) -> None:
    """Log an end; of a program's failure its class alone, since the message is its owner's."""
    seconds = (
        instance.ended_clock or instance.launched_clock
    ) - instance.launched_clock
    fields: dict[str, Any] = {
        "instance": instance.instance_id,
        "program": instance.program,
        "owner": instance.owner.name,
        "state": instance.state,
        "seconds": round(seconds, 6),
        "tokens_sampled": instance.usage().get("tokens_sampled", 0),
    }
    if error is not None:
        fields["error"] = type(error).__name__
    logger.info(
        "%s %s after %.3f s",
        instance.instance_id,
        instance.state,
        seconds,
        extra={FIELDS: {"event": "end", **fields}},
    )


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        """Return the line, with the instance unless the message names it."""
        text = super().formatMessage(record)
        name = _instance.get()
        return f"{text} [{name}]" if name and name not in text else text


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        fields = dict(getattr(record, FIELDS, {}))
        if name := _instance.get():
            fields.setdefault("instance", name)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        level, text = record.levelname.lower(), record.getMessage()
        return _encode(record.created, level, record.name, text, fields)


def _encode(at: float, level: str, name: str, text: str, fields: dict[str, Any]) -> str:
    seconds, part = divmod(at, 1)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    line = {
        "time": f"{stamp}.{int(part * 1000):03}Z",
        "level": level,
        "logger": name,
        "message": text,
    }
    return json.dumps({**line, **fields}, ensure_ascii=False, default=str)
