"""The host calls of a run in a file, and a run that gets the same answers without a host.

A program does nothing but what follows from the answers to its calls, so the same answers give
the same run, in Wasm or natively. A line of the file is one call; the first says whose they are.
"""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from pie_trio._version import __version__
from pie_trio.application.wasm.values import ResultValue
from pie_trio.errors import EngineError, InferletError, PieError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = ["DivergedError", "Player", "Recorder", "RecordingError"]

FORMAT = 1
MAX_SHOWN = 200


class RecordingError(ProgramError):
    """A file is no recording that can be replayed."""


class DivergedError(PieError):
    """A program did something else than in the recording; the message says at which call.

    Attributes:
        number: Of the call, counted from 1.
    """

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"call {number} is not as recorded: {message}")
        self.number = number


class ReplayedError(InferletError):
    """What a call answered when it was recorded."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # the class attribute of others


class Recorder:
    """Writes each call and its answer down. A :class:`~.taps.Tap`.

    Attributes:
        host: The host object of the program, once there is one.
    """

    def __init__(self, program: str, seed: int) -> None:
        header = {
            "format": FORMAT,
            "pie": __version__,
            "program": program,
            "seed": seed,
        }
        self._lines: list[Any] = [header]
        self.host: Any = None

    def is_for(self, host: Any) -> bool:
        """Say whether it is the host object of the program."""
        return host is self.host

    def begin(self, name: str, arguments: Sequence[Any]) -> None:
        """Take note of a call. A program waits for one answer at a time."""
        self._lines.append([name, encode(list(arguments)), None])

    def end(self, name: str, answer: Any) -> None:
        """Take note of its answer."""
        line = self._lines[-1]
        assert line[0] == name, "a program waits for one answer at a time"
        line[2] = encode(answer)

    def finish(self, outcome: Any) -> None:
        """Take note of how the program ended."""
        self._lines.append(["end", [], encode(outcome)])

    def write(self, path: Path) -> None:
        """Write the file."""
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        path.write_text(text, encoding="utf-8")


class Player:
    """Answers each call as it was answered before. A :class:`~.taps.Tap`.

    Attributes:
        program: Whose calls they are.
        seed: Of the random numbers.
        host: The host object of the program, whose log it fills.
        messages: What the program sent.
        diverged: What was raised at the first call that is not as recorded.

    Raises:
        RecordingError: The file cannot be read, or is no recording.
    """

    def __init__(self, path: Path) -> None:
        try:
            lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            header, *self._calls = lines
            is_known = header["format"] == FORMAT
            self.program: str = header["program"]
            self.seed: int = header["seed"]
        except OSError as error:
            raise RecordingError(f"cannot read {path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RecordingError(f"{path} is no recording: record it again") from error
        if not is_known or not self._calls or self._calls[-1][0] != "end":
            raise RecordingError(
                f"{path} is of another version of Pie, or cut short: record it again"
            )
        self.host: Any = None
        self.messages: list[str | bytes] = []
        self._next = 0
        self.diverged: DivergedError | None = None

    def is_for(self, host: Any) -> bool:
        """Say yes: where calls are replayed there are no children."""
        return True

    def begin(self, name: str, arguments: Sequence[Any]) -> Callable[[], Any]:
        """Return what gives the recorded answer.

        Raises:
            DivergedError: Another call was recorded here.
        """
        number = self._next + 1
        wanted_name, wanted, answer = self._calls[self._next]
        given = json.loads(json.dumps(encode(list(arguments))))
        if (name, given) != (wanted_name, wanted):
            recorded = (
                "the recording ends here"
                if wanted_name == "end"
                else f"recorded was {_show(wanted_name, wanted)}"
            )
            raise self._diverge(number, f"{recorded}, now comes {_show(name, given)}")
        self._next += 1
        if name in ("messaging.send", "messaging.send-bytes"):
            self.messages.append(_sent(arguments))
        elif name == "runtime.log":
            level, text, fields = arguments
            self.host.log.write(level, f"{text} {fields}" if fields else text)
        return lambda: _answer(decode(answer))

    def end(self, name: str, answer: Any) -> None:
        """Never called: the host does not answer."""
        raise AssertionError("a player answers itself")

    def finish(self, outcome: Any) -> None:
        """Compare how the program ended.

        Raises:
            DivergedError: A call has diverged, some were not made, or the end is another.
        """
        if self.diverged is not None:
            raise self.diverged
        name, arguments, wanted = self._calls[self._next]
        number = self._next + 1
        given = json.loads(json.dumps(encode(outcome)))
        if name != "end":
            raise self._diverge(
                number, f"recorded was {_show(name, arguments)}, now the program ends"
            )
        if given != wanted:
            raise self._diverge(
                number, f"the program ended with {wanted!r}, now with {given!r}"
            )

    def _diverge(self, number: int, message: str) -> DivergedError:
        self.diverged = self.diverged or DivergedError(number, message)
        return self.diverged


def _answer(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def _sent(arguments: Sequence[Any]) -> str | bytes:
    (message,) = arguments
    return message if isinstance(message, str) else bytes(bytearray(message))


def _show(name: str, arguments: Sequence[Any]) -> str:
    shown = ", ".join(json.dumps(argument) for argument in arguments)
    shown = shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."
    return f"{name}({shown})"


def encode(value: Any) -> Any:
    """Return a value of the boundary as JSON; what JSON lacks is an object with one key."""
    whole = value  # which no `isinstance` has narrowed
    if value is None or isinstance(value, bool | str | int | float):
        return whole
    if isinstance(value, np.generic):
        return whole.item()
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(whole).tobytes()).decode()
        return {"array": [str(whole.dtype), list(whole.shape), data]}
    if isinstance(value, ResultValue):
        return {"result": [whole.is_ok, encode(whole.value)]}
    if isinstance(value, InferletError | EngineError):
        return {"error": [value.code, str(value)]}
    if isinstance(value, Exception):
        raise value  # a bug of the host's, which nobody replays
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in whole.items()]}
    items = [encode(item) for item in whole]
    if isinstance(value, tuple):
        return {"tuple": items}
    return {"set": sorted(items)} if isinstance(value, frozenset | set) else items


def decode(value: Any) -> Any:
    """Return what :func:`encode` was given."""
    whole = value
    if isinstance(value, list):
        return [decode(item) for item in whole]
    if not isinstance(value, dict):
        return whole
    kind: str
    content: Any
    ((kind, content),) = whole.items()
    match kind:
        case "bytes":
            return base64.b64decode(content)
        case "array":
            dtype, shape, data = content
            flat = np.frombuffer(base64.b64decode(data), np.dtype(dtype))
            return flat.reshape(shape).copy()
        case "result":
            result: ResultValue[Any] = ResultValue(content[0], decode(content[1]))
            return result
        case "error":
            return ReplayedError(*content)
        case "dict":
            return {decode(k): decode(v) for k, v in content}
        case "tuple":
            return tuple(decode(item) for item in content)
        case _:
            return frozenset(decode(item) for item in content)
