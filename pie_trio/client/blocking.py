"""The client for programs without an event loop: the same one, in a loop of its own in a thread.

Every method is that of the asynchronous class, called in the thread: there is one
implementation, and each signature is written once.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import update_wrapper, wraps
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
)

from pie_trio.client.client import Client
from pie_trio.client.instances import Instance, Run
from pie_trio.client.loop_thread import LoopThread
from pie_trio.client.session import Session

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Generator, Iterator

    from pie_trio.client.events import Event, Outcome
    from pie_trio.client.functions import RemoteFunction
    from pie_trio.client.shipping import Shipped

__all__ = [
    "BlockingClient",
    "BlockingFunction",
    "BlockingInstance",
    "BlockingRun",
    "BlockingSession",
    "inferlet",
]

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
B = TypeVar("B")


class _Blocking(Generic[T]):
    """Something that blocks.

    Attributes:
        thread: Where the event loop is.
        twin: The asynchronous object that it stands for.
    """

    def __init__(self, thread: LoopThread, twin: T) -> None:
        self.thread, self.twin = thread, twin


def _call(
    method: Callable[Concatenate[T, P], Awaitable[R]],
) -> Callable[Concatenate[_Blocking[T], P], R]:
    """Return a method that blocks until the asynchronous one has returned."""

    @wraps(method)
    def call(self: _Blocking[T], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.thread.call(method, self.twin, *args, **kwargs)

    return call


def _make(
    method: Callable[Concatenate[T, P], R], kind: Callable[[LoopThread, R], B]
) -> Callable[Concatenate[_Blocking[T], P], B]:
    """Return a method that returns the blocking twin of what the asynchronous one does."""

    @wraps(method)
    def make(self: _Blocking[T], /, *args: P.args, **kwargs: P.kwargs) -> B:
        return kind(self.thread, method(self.twin, *args, **kwargs))

    return make


def _call_and_make(
    method: Callable[Concatenate[T, P], Awaitable[R]],
    kind: Callable[[LoopThread, R], B],
) -> Callable[Concatenate[_Blocking[T], P], B]:
    """Do both."""
    called = _call(method)

    @wraps(method)
    def make(self: _Blocking[T], /, *args: P.args, **kwargs: P.kwargs) -> B:
        return kind(self.thread, called(self, *args, **kwargs))

    return make


class BlockingRun(_Blocking[Run]):
    """The events of an instance, to iterate over once; see :class:`Run`."""

    result = _call(Run.result)

    def __init__(self, thread: LoopThread, twin: Run) -> None:
        super().__init__(thread, twin)
        self._stack = ExitStack()

    @property
    def instance(self) -> BlockingInstance:
        """Handle to the instance."""
        return BlockingInstance(self.thread, self.twin.instance)

    @property
    def outcome(self) -> Outcome | None:
        """How the instance has ended; None before its last event was read."""
        return self.twin.outcome

    def __enter__(self) -> Self:
        self._stack.enter_context(self.thread.hold(self.twin))
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def __iter__(self) -> Iterator[Event]:
        if self.twin.is_entered:
            yield from self.thread.iterate(self.twin)
            return
        with self:
            yield from self.thread.iterate(self.twin)


class BlockingFunction(Generic[P, R]):
    """A function whose calls run on a server, and block; see :class:`RemoteFunction`.

    Attributes:
        function: The function itself, or a module.
    """

    def __init__(self, thread: LoopThread, twin: RemoteFunction[P, R]) -> None:
        update_wrapper(self, twin)
        self.function = twin.function
        self._thread, self._twin = thread, twin

    @property
    def shipped(self) -> Shipped:
        """What is sent; see :class:`RemoteFunction`."""
        return self._twin.shipped

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it, and return what it returns. Raises what :class:`RemoteFunction` does."""
        return self._thread.call(self._twin, *args, **kwargs)

    def run(self, *args: P.args, **kwargs: P.kwargs) -> BlockingRun:
        """Return a run of it."""
        return BlockingRun(self._thread, self._twin.run(*args, **kwargs))


class BlockingInstance(_Blocking[Instance]):
    """An instance on a server, by its id; see :class:`Instance`."""

    status = _call(Instance.status)
    send = _call(Instance.send)
    end_input = _call(Instance.end_input)
    cancel = _call(Instance.cancel)
    logs = _call(Instance.logs)
    attach = _make(Instance.attach, BlockingRun)

    @property
    def instance_id(self) -> str:
        """Its id."""
        return self.twin.instance_id

    def __repr__(self) -> str:
        return repr(self.twin)

    @contextmanager
    def follow_logs(self) -> Generator[Iterator[Event]]:
        """Read its log up to its end for as long as the block is open.

        It iterates over :class:`Log`, and :class:`Lost` where lines are not kept any more.
        """
        with self.thread.hold(self.twin.follow_logs()) as lines:
            yield self.thread.iterate(lines)


class BlockingSession(_Blocking[Session]):
    """An instance to send to and to read from; see :class:`Session`."""

    send = _call(Session.send)
    end_input = _call(Session.end_input)
    signal = _call(Session.signal)
    cancel = _call(Session.cancel)
    detach = _call(Session.detach)
    result = _call(Session.result)

    def __init__(self, thread: LoopThread, twin: Session) -> None:
        super().__init__(thread, twin)
        self._stack = ExitStack()

    @property
    def instance_id(self) -> str:
        """Of the instance; empty before the block."""
        return self.twin.instance_id

    @property
    def instance(self) -> BlockingInstance:
        """Handle to the instance."""
        return BlockingInstance(self.thread, self.twin.instance)

    @property
    def outcome(self) -> Outcome | None:
        """How the instance has ended; None before its last event was read."""
        return self.twin.outcome

    def __enter__(self) -> Self:
        self._stack.enter_context(self.thread.hold(self.twin))
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def __iter__(self) -> Iterator[Event]:
        return self.thread.iterate(self.twin)


class BlockingClient(_Blocking[Client]):
    """A server, for programs without an event loop; see :class:`Client`.

    A context manager; who opens it otherwise calls :meth:`close` in the end. Ctrl-C in the
    middle of a call cancels what it does, and on the server what it runs.

    Args:
        url: As for :class:`Client`.
        key: As for :class:`Client`.
        user: As for :class:`Client`.
        ssl_context: As for :class:`Client`.
    """

    deploy = _call(Client.deploy)
    programs = _call(Client.programs)
    program = _call(Client.program)
    has_program = _call(Client.has_program)
    undeploy = _call(Client.undeploy)
    run = _make(Client.run, BlockingRun)
    call = _call(Client.call)
    session = _make(Client.session, BlockingSession)
    launch = _call_and_make(Client.launch, BlockingInstance)
    instance = _make(Client.instance, BlockingInstance)
    instances = _call(Client.instances)
    models = _call(Client.models)
    health = _call(Client.health)
    metrics = _call(Client.metrics)

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        user: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        client = Client(url, key, user=user, ssl_context=ssl_context)
        super().__init__(LoopThread(), client)

    @property
    def url(self) -> str:
        """Of the server."""
        return self.twin.url

    def inferlet(self, function: Callable[P, Awaitable[R]]) -> BlockingFunction[P, R]:
        """Make an asynchronous function, or a module with an ``@inferlet``, one that runs there.

        Its calls block; else as :meth:`Client.inferlet`.
        """
        return BlockingFunction(self.thread, self.twin.inferlet(function))

    def close(self) -> None:
        """Close all connections, and end the thread."""
        self.thread.call(self.twin.__aexit__)
        self.thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def inferlet(function: Callable[P, Awaitable[R]]) -> BlockingFunction[P, R]:
    """Make a function one that runs on the server of ``$PIE_SERVER``, and blocks.

    As :meth:`BlockingClient.inferlet`, with a client of its own.
    """
    return BlockingClient().inferlet(function)
