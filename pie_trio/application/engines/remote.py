"""An engine in another process, as the control layer sees it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from pie_trio.application.engines.adapters import KeptAdapters
from pie_trio.application.engines.channel import ClosedError
from pie_trio.application.engines.messages import (
    BatchWriter,
    unpack_error,
    unpack_result,
)
from pie_trio.application.engines.process import spawn_engine
from pie_trio.config import EngineProcessConfig
from pie_trio.errors import EngineError, EngineLostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.application.engines.channel import Channel
    from pie_trio.application.engines.process import EngineProcess
    from pie_trio.engine_api import (
        Batch,
        BatchResult,
        Engine,
        ModelInfo,
        ProcessorSpec,
    )

__all__ = ["RemoteEngine"]

logger = logging.getLogger(__name__)


class RemoteEngine:
    """An :class:`~pie_trio.engine_api.Engine` in a process of its own.

    When the process ends, every method raises EngineLostError until another one is
    :meth:`adopted <adopt>`, which has nothing of it but the adapters.

    Attributes:
        name: Of the model.
        config: Times and limits.
    """

    def __init__(
        self,
        name: str,
        opener: Callable[[], Engine],
        environment: Mapping[str, str],
        *,
        adapters: Sequence[tuple[str, Path]] = (),
        config: EngineProcessConfig | None = None,
    ) -> None:
        """Start the process and wait until its engine is open. Blocks.

        Args:
            name: Of the model.
            opener: Opens the engine in its process; it is pickled.
            environment: Of the process.
            adapters: To load at the start.
            config: Times and limits.

        Raises:
            ConfigError: The engine cannot be opened.
            EngineError: Its process has ended.
        """
        self.name, self.config = name, config or EngineProcessConfig()
        self._opener, self._environment = opener, environment
        self._adapters = KeptAdapters()
        self._calling, self._changing = threading.Lock(), threading.Lock()
        self._error: EngineError | None = None
        for adapter, directory in adapters:
            self._adapters.add(adapter, directory)
        self._process = self.spawn()
        try:
            found = self._process.wait_opened(self.config.start_seconds)
            for failure in found[1].values():
                raise unpack_error(failure)
        except BaseException:
            self._process.close()
            raise
        self.adopt(self._process, *found)

    # ---- its processes ----------------------------------------------------------------

    @property
    def error(self) -> EngineError | None:
        """What every method raises, while there is no process; else None."""
        return self._error

    @property
    def process(self) -> EngineProcess:
        """The process of now.

        Raises:
            EngineLostError: It has ended.
            EngineError: This engine is closed.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        return self._process

    @property
    def latest(self) -> EngineProcess:
        """The process of now, or the last one."""
        return self._process

    def spawn(self) -> EngineProcess:
        """Start another process, and let it open the engine. Does not wait for that."""
        process = spawn_engine(self._environment)
        try:
            with suppress(ClosedError):  # whoever waits for it hears of it
                process.send_opening(self._opener, self._adapters.reload())
        except BaseException:
            process.close()
            raise
        return process

    def adopt(
        self, process: EngineProcess, info: ModelInfo, failures: Mapping[str, Any]
    ) -> None:
        """Go on with another process, whose engine is open.

        Args:
            process: From :meth:`spawn`.
            info: Of its engine.
            failures: The errors of adapters that it could not load.
        """
        for name, failure in failures.items():
            self._adapters.note_failure(name, unpack_error(failure))
        self._info, self._process = info, process
        self._writer, self._num_posted = BatchWriter(), 0
        self._slow: queue.SimpleQueue[Channel] = queue.SimpleQueue()
        for channel in process.slow:
            self._slow.put(channel)
        self._error = None

    def lose(self, process: EngineProcess, reason: str = "") -> EngineError:
        """Give a process up, and return what is to be raised. Any thread may call this.

        Args:
            process: That does not do its work.
            reason: Why, if it has not ended by itself.
        """
        with self._changing:
            if self._process is process and self._error is None:
                process.kill()
                why = reason or f"its process {process.end_reason()}"
                self._error = EngineLostError(self.name, why)
                logger.error("%s", self._error)
            return self._error or EngineLostError(self.name, "it was replaced")

    # ---- steps ------------------------------------------------------------------------

    @property
    def info(self) -> ModelInfo:
        """What the model is; constant but for its adapters."""
        return self._info

    def pack(self, batch: Batch) -> Any:
        """Return the message that asks for a step."""
        return "execute", self._writer.write(batch), self._num_posted

    def unpack(self, answer: tuple[bool, Any]) -> BatchResult:
        """Return what a step returned.

        Raises:
            PieError: What it raised.
        """
        return unpack_result(_value(answer))

    def execute(self, batch: Batch) -> BatchResult:
        """Run one step: see :meth:`pie_trio.engine_api.Engine.execute`."""
        process = self.process
        return self.unpack(self._ask_step(process, self.pack(batch)))

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """See :meth:`pie_trio.engine_api.Engine.read_pages`."""
        message = ("read_pages", (page_ids,), self._num_posted)
        pages: NDArray[np.uint8] = _value(self._ask_step(self.process, message))
        return pages

    def write_pages(self, page_ids: NDArray[np.int32], data: NDArray[np.uint8]) -> None:
        """See :meth:`pie_trio.engine_api.Engine.write_pages`."""
        message = ("write_pages", (page_ids, data), self._num_posted)
        _value(self._ask_step(self.process, message))

    def _ask_step(self, process: EngineProcess, message: Any) -> tuple[bool, Any]:
        return self._exchange(
            process, process.steps, message, self.config.step_seconds, "a step"
        )

    # ---- calls ------------------------------------------------------------------------

    def create_processor(self, processor: int, spec: ProcessorSpec) -> None:
        """See :meth:`pie_trio.engine_api.Engine.create_processor`."""
        self._call_slowly("create_processor", processor, spec)

    def fork_processor(
        self, source: int, targets: Sequence[int], *, is_ahead: bool = False
    ) -> None:
        """See :meth:`pie_trio.engine_api.Engine.fork_processor`."""
        self._call("fork_processor", source, list(targets), is_ahead=is_ahead)

    def accept_tokens(self, processor: int, token_ids: Sequence[int]) -> int:
        """See :meth:`pie_trio.engine_api.Engine.accept_tokens`."""
        count: int = self._call("accept_tokens", processor, list(token_ids))
        return count

    def roll_back(self, processor: int, count: int) -> None:
        """See :meth:`pie_trio.engine_api.Engine.roll_back`."""
        self._call("roll_back", processor, count)

    def allowed_tokens(self, processor: int) -> NDArray[np.uint32]:
        """See :meth:`pie_trio.engine_api.Engine.allowed_tokens`."""
        mask: NDArray[np.uint32] = self._call("allowed_tokens", processor)
        return mask

    def has_ended(self, processor: int) -> bool:
        """See :meth:`pie_trio.engine_api.Engine.has_ended`."""
        has_ended: bool = self._call("has_ended", processor)
        return has_ended

    def drop_processors(self, processors: Sequence[int]) -> None:
        """See :meth:`pie_trio.engine_api.Engine.drop_processors`. Does not wait for it."""
        if self._error is not None:
            return  # they have gone with the process
        process = self._process
        message: Any = ("drop_processors", (list(processors),), {}, True)
        with self._calling:
            try:
                process.calls.send(message, deadline=self._deadline())
            except (ClosedError, TimeoutError):
                self.lose(process)
            else:
                self._num_posted += 1

    def load_adapter(self, name: str, directory: Path | str) -> None:
        """See :meth:`pie_trio.engine_api.Engine.load_adapter`."""
        self._adapters.check(name, directory)
        self._info = self._call_slowly("load_adapter", name, str(directory))
        self._adapters.add(name, directory)

    def drop_adapter(self, name: str) -> None:
        """See :meth:`pie_trio.engine_api.Engine.drop_adapter`."""
        self._info = self._call("drop_adapter", name)
        self._adapters.drop(name)

    def close(self) -> None:
        """End the process. Idempotent."""
        with self._changing:
            self._error = EngineError(
                f"the engine of {self.name} is closed: open it again"
            )
        self._process.close()

    def _call(self, name: str, *values: Any, **keywords: Any) -> Any:
        process = self.process
        message: Any = (name, values, keywords, False)
        with self._calling:
            answer = self._exchange(
                process, process.calls, message, self.config.call_seconds, name
            )
        return _value(answer)

    def _call_slowly(self, name: str, *values: Any) -> Any:
        process, channels = self.process, self._slow
        channel = channels.get()
        try:
            message: Any = (name, values, {}, False)
            answer = self._exchange(
                process, channel, message, self.config.step_seconds, name
            )
        finally:
            channels.put(channel)  # if it was cut off, the process is lost
        return _value(answer)

    def _exchange(
        self,
        process: EngineProcess,
        channel: Channel,
        message: Any,
        seconds: float,
        what: str,
    ) -> tuple[bool, Any]:
        deadline = time.monotonic() + seconds
        try:
            channel.send(message, deadline=deadline)
            answer: tuple[bool, Any] = channel.receive(deadline=deadline)
        except ClosedError:
            raise self.lose(process) from None
        except TimeoutError:
            raise self.lose(process, took_too_long(what, seconds)) from None
        except BaseException:
            self.lose(
                process, f"{what} was cut off"
            )  # its answer would be the next one's
            raise
        return answer

    def _deadline(self) -> float:
        return time.monotonic() + self.config.call_seconds


def took_too_long(what: str, seconds: float) -> str:
    """Return why an engine was given up that did not answer."""
    return f"{what} was not done after {seconds:g} s"


def _value(answer: tuple[bool, Any]) -> Any:
    is_good, value = answer
    if not is_good:
        raise unpack_error(value)
    return value
