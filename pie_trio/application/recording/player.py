"""Answers a program's calls as they were answered before, and says where it does otherwise."""

from __future__ import annotations

import json
import re
from collections import deque
from typing import TYPE_CHECKING, Any

from pie_trio._version import __version__
from pie_trio.application.host.relay import make_message
from pie_trio.application.recording.files import RecordingError, read
from pie_trio.application.recording.recorder import kind_of
from pie_trio.application.recording.taps import RANDOM, SYSTEM_CALLS
from pie_trio.application.recording.values import ReplayedError, decode, encode
from pie_trio.errors import GuestFailedError, PieError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pie_trio.application.host.relay import Envelope

__all__ = ["DivergedError", "Player", "RecordingEndedError"]

MAX_SHOWN = 200
MAX_CALLS_AFTER = 1000
"""After the divergence: enough to clean up and to raise, and not for ever."""
FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in (.+)')


class DivergedError(PieError):
    """A program did something else than in the recording; the message says at which call.

    Attributes:
        number: Of the call, counted from 1.
        line: The program's line that made it, as ``app.py:7, in main``; empty if unknown.
    """

    def __init__(self, number: int, message: str, line: str = "") -> None:
        where = f" (at {line})" if line else ""
        super().__init__(f"call {number} is not as recorded: {message}{where}")
        self.number, self.message, self.line = number, message, line


class RecordingEndedError(PieError):
    """The recorded run was ended here from outside, so that nobody knows how it goes on.

    Attributes:
        number: Of calls that were as recorded.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"as recorded up to call {number}; there {reason}")
        self.number = number


class Player:
    """Answers each call as it was answered before. A :class:`~.taps.Tap`.

    Attributes:
        header: Whose calls they are.
        host: The host object of the program, whose log it fills.
        messages: What the program sent.
        num_calls: Calls that were as recorded.
        stopped: What was raised at the first call that was not.

    Raises:
        RecordingError: The file cannot be read, or is no recording.
    """

    def __init__(self, path: Path) -> None:
        self.header, lines, self._ended = read(path)
        self._path = path
        self._calls: list[bytes] = []
        self._system: dict[str, deque[Any]] = {name: deque() for name in SYSTEM_CALLS}
        for line in lines:
            if line.startswith(b'["system"'):
                _, name, answer = self._parse(line)
                self._system.setdefault(name, deque()).append(answer)
            else:
                self._calls.append(line)
        self.host: Any = None
        self.messages: list[str | bytes] = []
        self.num_calls = 0
        self.stopped: DivergedError | RecordingEndedError | None = None
        self._num_after = 0
        self._relays = _Relays()

    def is_for(self, host: Any) -> bool:
        """Say whether it is the program's host: its code is compiled by another guest."""
        return host is self.host

    def begin(
        self, name: str, arguments: Sequence[Any], *, may_fail: bool = False
    ) -> Callable[[], Any]:
        """Return what gives the recorded answer.

        Once a call is not as recorded, it fails, and so do all after it, so that the program
        raises and its traceback names the line.

        Raises:
            DivergedError: Another call was recorded here, and this one cannot fail.
            RecordingEndedError: Nothing was recorded any more.
        """
        try:
            if self.stopped is not None:
                raise self.stopped
            if name in SYSTEM_CALLS:
                answer = self._take_system(name, arguments)
            else:
                answer = self._take(name, arguments)
        except (DivergedError, RecordingEndedError) as error:
            self._num_after += 1
            if not may_fail or self._num_after > MAX_CALLS_AFTER:
                raise
            answer = ReplayedError("failed", str(error))
        return lambda: _answer(answer)

    def end(self, name: str, answer: Any) -> None:
        """Never called: the host does not answer."""
        raise AssertionError("a player answers itself")

    def finish(self, result: Any) -> None:
        """Compare what the program returned.

        Raises:
            DivergedError: A call has diverged, some were not made, or the end is another.
            RecordingEndedError: The recorded run was ended from outside.
        """
        self._compare_end("returned", json.loads(json.dumps(encode(result))))

    def fail(self, error: BaseException) -> None:
        """Compare with what the program failed.

        Raises:
            DivergedError: A call has diverged, some were not made, or the end is another.
            RecordingEndedError: The recorded run was ended from outside.
        """
        if isinstance(self.stopped, DivergedError):
            line = _find_line(getattr(error, "traceback", ""))
            stopped = self.stopped
            raise DivergedError(stopped.number, stopped.message, line) from None
        ended = "raised" if isinstance(error, GuestFailedError) else "stopped"
        self._compare_end(ended, kind_of(error))

    def _compare_end(self, ended: str, value: Any) -> None:
        if self.stopped is not None:
            raise self.stopped
        if self.num_calls < len(self._calls):
            _, name, arguments, *_ = self._parse(self._calls[self.num_calls])
            shown = _show(name, arguments)
            raise self._diverge(f"recorded was {shown}, now the program ends")
        if self._ended[0] == "stopped":
            raise self._end_here()
        if (ended, value) != self._ended:
            was, now = _clip(f"{self._ended}"), _clip(f"{(ended, value)}")
            raise self._diverge(f"the program has ended with {was}, now with {now}")

    def _take(self, name: str, arguments: Sequence[Any]) -> Any:
        given = json.dumps(encode(list(arguments)))
        if self.num_calls == len(self._calls):
            if self._ended[0] == "stopped":
                raise self._end_here()
            shown = _show(name, json.loads(given))
            raise self._diverge(f"the recording ends here, now comes {shown}")
        _, wanted_name, wanted, *answers = self._parse(self._calls[self.num_calls])
        # As text, for a number that is none does not equal itself.
        if (name, given) != (wanted_name, json.dumps(wanted)):
            raise self._diverge(
                f"recorded was {_show(wanted_name, wanted)}, now comes "
                f"{_show(name, json.loads(given))}"
            )
        if not answers:
            raise self._end_here()
        self.num_calls += 1
        if name in ("messaging.send", "messaging.send-bytes"):
            self.messages.append(_sent(arguments))
        elif name == "runtime.log":
            level, text, fields = arguments
            self.host.log.write(level, f"{text} {fields}" if fields else text)
        answer = self._decode(answers[0])
        if not isinstance(answer, Exception):
            self.messages += self._relays.take(name, arguments, answer)
        return answer

    def _take_system(self, name: str, arguments: Sequence[Any]) -> Any:
        answers = self._system[name]
        if not answers:
            if self._ended[0] == "stopped":
                raise self._end_here()
            raise self._diverge(f"before it the program asks {name} once more")
        answer = self._decode(answers.popleft())
        if name == RANDOM and len(answer) != arguments[0]:
            raise self._diverge(
                f"before it the program asks for {arguments[0]} random bytes; recorded were "
                f"{len(answer)}"
            )
        return answer

    def _diverge(self, message: str) -> DivergedError:
        if self.header.pie != __version__:
            message += f" (recorded by Pie {self.header.pie}, this is {__version__})"
        self.stopped = error = DivergedError(self.num_calls + 1, message)
        return error

    def _end_here(self) -> RecordingEndedError:
        reason = self._ended[1] if self._ended[0] == "stopped" else "the run was ended"
        self.stopped = error = RecordingEndedError(self.num_calls, str(reason))
        return error

    def _parse(self, line: bytes) -> list[Any]:
        try:
            found: list[Any] = json.loads(line)
            if found[0] not in ("call", "system") or len(found) < 3:
                raise ValueError
        except (ValueError, LookupError, TypeError) as error:
            raise self._damaged() from error
        return found

    def _decode(self, value: Any) -> Any:
        try:
            return decode(value)
        except (ValueError, LookupError, TypeError) as error:
            raise self._damaged() from error

    def _damaged(self) -> RecordingError:
        return RecordingError(f"{self._path} has a line that is none: record it again")


class _Relays:
    """What the host itself has sent for a program, at the call that told it of that."""

    def __init__(self) -> None:
        self._by_ticket: dict[int, Envelope | None] = {}
        self._tickets: dict[int, int] = {}

    def take(
        self, name: str, arguments: Sequence[Any], answer: Any
    ) -> list[str | bytes]:
        """Take note of a call; return what was sent, in one message."""
        if name == "decode.relay-stream":
            stream, envelope = arguments
            self._by_ticket[answer], self._tickets[stream] = envelope, answer
            return []
        if name == "decode.collect-stream":
            self._tickets.pop(arguments[0], None)  # of a relay before
            return []
        if name not in ("decode.take-chunk", "decode.end-relay"):
            return []
        (number,) = arguments
        ticket = self._tickets.get(number) if name == "decode.end-relay" else number
        if ticket not in self._by_ticket:
            return []
        envelope, text = self._by_ticket.pop(ticket), answer[1]
        return [make_message(text, envelope)] if text else []


def _answer(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def _sent(arguments: Sequence[Any]) -> str | bytes:
    (message,) = arguments
    return message if isinstance(message, str) else bytes(bytearray(message))


def _show(name: str, arguments: Sequence[Any]) -> str:
    shown = ", ".join(json.dumps(argument) for argument in arguments)
    return f"{name}({_clip(shown)})"


def _clip(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _find_line(traceback: str) -> str:
    """Return the innermost line of the program before the divergence is named."""
    frames = FRAME.findall(traceback.partition("is not as recorded")[0])
    if not frames:
        return ""
    path, number, function = frames[-1]
    return f"{path}:{number}, in {function}"
