"""The asynchronous client of a server."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

from pie_trio.client.errors import MissingError
from pie_trio.client.functions import RemoteFunction
from pie_trio.client.instances import Instance, Run
from pie_trio.client.records import make_program, make_status
from pie_trio.client.session import Session
from pie_trio.client.transport import Transport, quoted

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Mapping

    from pie_trio.client.records import InstanceStatus, Program
    from pie_trio.client.transport import EventStream

__all__ = ["Client", "default_key", "default_url"]

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_URL = "http://127.0.0.1:8000"


def default_url() -> str:
    """Return ``$PIE_SERVER``, else the URL of a server with the usual options."""
    return os.environ.get("PIE_SERVER") or DEFAULT_URL


def default_key() -> str | None:
    """Return ``$PIE_KEY``, if there is one."""
    return os.environ.get("PIE_KEY") or None


class Client:
    """A server, under trio or asyncio. An asynchronous context manager.

    ::

        async with Client("http://127.0.0.1:8000") as pie:
            async for event in pie.run("agent", question="..."):
                ...

    All methods raise:
        UnreachableError: No server answers.
        BrokenConnectionError: The connection has ended before the answer did.
        RefusedError: The server refuses; its subclasses say which way.

    Args:
        url: ``http://HOST:PORT``, ``https://HOST`` or ``unix:PATH``; None for ``$PIE_SERVER``,
            else port 8000 of this machine.
        key: What the server knows this client by; None for ``$PIE_KEY``, if there is one.
        user: For whom all of it is done; only with a key of the scope ``admin``. None for
            whoever the key belongs to.
        ssl_context: For https; None for the certificates in ``$PIE_CA_FILE``, else those in
            ``$SSL_CERT_FILE``, else those of the system.

    Attributes:
        transport: Its connections.

    Raises:
        ConfigError: The URL is none, the user no name, or a file of certificates cannot be
            used.
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        user: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.transport = Transport(
            url or default_url(), key or default_key(), user, ssl_context
        )

    @property
    def url(self) -> str:
        """Of the server."""
        return self.transport.url

    async def __aenter__(self) -> Self:
        await self.transport.http.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transport.http.aclose()

    # ---- programs ----------------------------------------------------------------------

    async def deploy(self, program: Path | str | bytes, name: str = "") -> Program:
        """Send a program to the server, in place of the one of its name.

        Args:
            program: A ``.py`` file, a folder with an ``app.py``, a ``.zip`` of one, or a
                ``.wasm`` component; or, as bytes, the contents of such a file.
            name: What to call it; needed for bytes, else as its file or folder.

        Raises:
            ProgramError: It is none of these, or cannot be read.
            ProgramFailedError: It cannot be imported.
        """
        if not isinstance(program, bytes):
            from pie_trio.client.packing import pack_program

            found, program = pack_program(Path(program))
            name = name or found
        elif not name:
            raise ValueError("a program that is given as bytes needs a name")
        path = f"/v1/programs/{quoted(name)}"
        return make_program(await self.transport.ask("PUT", path, body=program))

    async def programs(self) -> list[Program]:
        """Return what can be launched."""
        answer = await self.transport.ask("GET", "/v1/programs")
        return [make_program(raw) for raw in answer["programs"]]

    async def program(self, name: str, *, waits: bool = False) -> Program:
        """Return a program with its documentation and arguments.

        Args:
            name: Of the program.
            waits: For a component that is being compiled.

        Raises:
            MissingError: There is none of this name.
        """
        path = f"/v1/programs/{quoted(name)}{'?wait=1' if waits else ''}"
        program = make_program(await self.transport.ask("GET", path))
        while (
            waits and program.state == "compiling"
        ):  # each request waits half a minute
            program = make_program(await self.transport.ask("GET", path))
        return program

    async def undeploy(self, name: str) -> None:
        """Remove a program; its instances run on.

        Raises:
            MissingError: There is none of this name, or it comes with Pie.
        """
        await self.transport.ask("DELETE", f"/v1/programs/{quoted(name)}")

    async def has_program(self, name: str) -> bool:
        """Say whether there is a program of this name."""
        try:
            await self.program(name)
        except MissingError:
            return False
        return True

    # ---- instances ---------------------------------------------------------------------

    def run(self, program: str, /, **arguments: Any) -> Run:
        """Return a run of a program, which is launched when the first event is asked for.

        Args:
            program: Its name.
            arguments: By name; what JSON can carry.
        """
        return Run(self.transport, partial(self.open_run, program, arguments))

    async def open_run(self, program: str, arguments: Mapping[str, Any]) -> EventStream:
        """Launch a program, and return the stream of its events, which has to be closed."""
        asked = {"program": program, "arguments": arguments}
        return await self.transport.open_events("POST", "/v1/instances", asked)

    async def call(self, program: str, /, **arguments: Any) -> Any:
        """Run a program, and return what it returns.

        Args:
            program: Its name.
            arguments: By name; what JSON can carry.

        Raises:
            InstanceFailedError: It has failed, or was ended.
        """
        return await self.run(program, **arguments).result()

    async def launch(self, program: str, /, **arguments: Any) -> Instance:
        """Launch a program and leave it to run, whatever becomes of this client.

        Args:
            program: Its name.
            arguments: By name; what JSON can carry.
        """
        asked = {"program": program, "arguments": arguments, "detach": True}
        answer = await self.transport.ask("POST", "/v1/instances", json_body=asked)
        return self.instance(answer["id"])

    def inferlet(self, function: Callable[P, Awaitable[R]]) -> RemoteFunction[P, R]:
        """Make an asynchronous function, or a module with an ``@inferlet``, one that runs there.

        ::

            @pie.inferlet
            async def greet(name: str) -> str: ...

            await greet("ann")

        What it names of its own module is sent along: functions, classes, imports, constants.
        """
        return RemoteFunction(self, function)

    def session(self, program: str, /, **arguments: Any) -> Session:
        """Return a run of a program for a conversation, over a WebSocket.

        Args:
            program: Its name.
            arguments: By name; what JSON can carry.
        """
        asked = {"type": "launch", "program": program, "arguments": arguments}
        return Session(self.transport, asked)

    def instance(self, instance_id: str) -> Instance:
        """Return the handle to an instance. Asks nothing."""
        return Instance(self.transport, instance_id)

    async def instances(self) -> list[InstanceStatus]:
        """Return all instances, oldest first, those that ended a while ago too."""
        answer = await self.transport.ask("GET", "/v1/instances")
        return [make_status(raw) for raw in answer["instances"]]

    # ---- the server --------------------------------------------------------------------

    async def models(self) -> list[Mapping[str, Any]]:
        """Return the models, the default one first, in OpenAI's shape: ``id`` and more."""
        answer = await self.transport.ask("GET", "/v1/models")
        return list(answer["data"])

    async def health(self) -> str:
        """Return ``ready``. Raises an :class:`OverloadedError` once the server stops."""
        return str((await self.transport.ask("GET", "/readyz"))["status"])

    async def metrics(self) -> str:
        """Return the server's metrics in the text format of Prometheus."""
        return await self.transport.ask_text("/metrics")
