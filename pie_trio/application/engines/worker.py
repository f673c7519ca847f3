"""The process of an engine: opens it, and answers on each of its sockets in a thread of its own.

It is started by :mod:`pie_trio.application.engines.process`. Its main thread takes the steps; short calls
are answered beside them. Whenever the server ends, however it does, this process does too.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any

from pie_trio.application.engines.channel import Channel, ClosedError
from pie_trio.application.engines.life import live_with
from pie_trio.application.engines.messages import BatchReader, pack_error, pack_result
from pie_trio.control.device_steps import DeviceSteps
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pie_trio.control.device_steps import StartedStep
    from pie_trio.engine_api import Engine

__all__ = ["main"]

logger = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005
"""A short call gets Python's lock so soon after it has come; else it may take 5 ms, in which the
server waits."""

_ABOUT_ADAPTERS = ("load_adapter", "drop_adapter")


class _Posted:
    """Counts the calls that nobody waits for: a step must not come before those sent before it."""

    def __init__(self) -> None:
        self._count, self._changed = 0, threading.Condition()

    def add(self) -> None:
        with self._changed:
            self._count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        if self._count < count:
            with self._changed:
                self._changed.wait_for(lambda: self._count >= count)


def main(arguments: Sequence[str]) -> None:
    """Serve until the server ends.

    Args:
        arguments: The server's process, 0 if its end is not to be heard of by a signal; and
            the numbers of the sockets: for its life, for steps, and for calls.
    """
    parent, life, *others = map(int, arguments)
    live_with(parent, life)
    sys.setswitchinterval(SWITCH_SECONDS)
    steps, *calls = [Channel(socket.socket(fileno=number)) for number in others]
    try:
        _serve(steps, calls)
    except ClosedError:
        os._exit(0)  # other threads may be anywhere


def _serve(steps: Channel, calls: Sequence[Channel]) -> None:
    opener, adapters = steps.receive()
    posted = _Posted()
    try:
        engine: Engine = opener()
        failures = _load_adapters(engine, adapters)
    except PieError as error:
        steps.send((False, pack_error(error)))
        raise ClosedError from error
    except Exception as error:
        logger.exception("the engine cannot be opened")
        steps.send((False, pack_error(error)))
        raise ClosedError from error
    steps.send((True, (engine.info, failures)))
    for channel in calls:
        arguments = (_answer_calls, engine, channel, posted)
        threading.Thread(target=_until_closed, args=arguments, daemon=True).start()
    reader, in_order = BatchReader(), DeviceSteps(engine)
    started: queue.SimpleQueue[StartedStep] = queue.SimpleQueue()
    if in_order.is_pipelined:
        waiting = (_finish_steps, steps, started)
        threading.Thread(target=_until_closed, args=waiting, daemon=True).start()
    while True:
        name, values, num_posted = steps.receive()
        posted.wait_for(num_posted)
        if name != "execute":  # no step is on its way
            steps.send(_outcome(_call, engine, name, values, {}))
            continue
        step = in_order.start(reader.read(values))
        if in_order.is_pipelined:
            started.put(step)
        else:
            steps.send(_outcome(_finish, step))


def _finish_steps(steps: Channel, started: queue.SimpleQueue[StartedStep]) -> None:
    while True:
        steps.send(_outcome(_finish, started.get()))


def _finish(step: StartedStep) -> Any:
    return pack_result(step.finish())


def _load_adapters(
    engine: Engine, adapters: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Load adapters, and return the errors of those that could not be loaded."""
    failures: dict[str, Any] = {}
    for name, directory in adapters:
        try:
            engine.load_adapter(name, directory)
        except PieError as error:
            failures[name] = pack_error(error)
    return failures


def _answer_calls(engine: Engine, channel: Channel, posted: _Posted) -> None:
    while True:
        name, values, keywords, is_posted = channel.receive()
        answer = _outcome(_call, engine, name, values, keywords)
        if is_posted:
            posted.add()
        else:
            channel.send(answer)


def _call(engine: Engine, name: str, values: Any, keywords: Any) -> Any:
    value = getattr(engine, name)(*values, **keywords)
    return engine.info if name in _ABOUT_ADAPTERS else value


def _outcome(call: Callable[..., Any], *arguments: Any) -> tuple[bool, Any]:
    try:
        return True, call(*arguments)
    except PieError as error:
        return False, pack_error(error)
    except Exception as error:  # a bug of the engine's: it goes on
        logger.exception("a call of the engine failed")
        return False, pack_error(error)


def _until_closed(serve: Callable[..., None], *arguments: Any) -> None:
    try:
        serve(*arguments)
    except ClosedError:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
