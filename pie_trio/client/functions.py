"""Functions of a script or notebook that run on a server."""

from __future__ import annotations

import functools
import inspect
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast

from pie_trio.client.errors import MissingError
from pie_trio.client.instances import Run
from pie_trio.client.shipping import ship

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from pie_trio.client.client import Client
    from pie_trio.client.shipping import Shipped
    from pie_trio.client.transport import EventStream

__all__ = ["RemoteFunction"]

P = ParamSpec("P")
R = TypeVar("R")


class RemoteFunction(Generic[P, R]):
    """A function whose calls run on a server. Made by :meth:`Client.inferlet`.

    At the first call it is sent, unless the server has the very same program; its name there
    ends with its hash.

    Attributes:
        function: The function itself, or a module.
    """

    def __init__(self, client: Client, function: Callable[P, Awaitable[R]]) -> None:
        functools.update_wrapper(self, function)
        self.function: Any = function
        self._client = client
        self._shipped: Shipped | None = None
        self._is_there = False

    @property
    def shipped(self) -> Shipped:
        """What is sent.

        Raises:
            ProgramError: It needs what cannot be sent; the message names it.
        """
        if self._shipped is None:
            self._shipped = ship(self.function)
        return self._shipped

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it, and return what it returns, as JSON carries it: a dataclass is a dict.

        Raises:
            ProgramError: It cannot be sent.
            InstanceFailedError: It has failed, or was ended.
        """
        return cast("R", await self.run(*args, **kwargs).result())

    def run(self, *args: P.args, **kwargs: P.kwargs) -> Run:
        """Return a run of it, as :meth:`Client.run` does.

        Raises:
            ProgramError: It cannot be sent.
            TypeError: The arguments do not fit its signature.
        """
        arguments = dict[str, Any](kwargs)
        if not isinstance(self.function, ModuleType):
            arguments = inspect.signature(self.function).bind(*args, **kwargs).arguments
        else:
            assert not args, "a module has no signature to name them by"
        return Run(self._client.transport, partial(self._launch, arguments))

    async def _launch(self, arguments: Mapping[str, Any]) -> EventStream:
        for is_last in (False, True):
            await self._send()
            try:
                return await self._client.open_run(self.shipped.name, arguments)
            except MissingError:
                self._is_there = False  # somebody has removed it
                if is_last:
                    raise
        raise AssertionError("the second turn returns or raises")

    async def _send(self) -> None:
        """Send it unless the server has it."""
        if self._is_there:
            return
        name, sha256 = self.shipped.name, self.shipped.sha256
        try:
            is_same = (await self._client.program(name)).sha256 == sha256
        except MissingError:
            is_same = False
        if not is_same:
            await self._client.deploy(self.shipped.data, name)
        self._is_there = True
