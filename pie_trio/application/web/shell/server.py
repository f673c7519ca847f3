"""The server: takes connections while it runs, and lets them end when it stops."""

from __future__ import annotations

import logging
import socket
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from pie_trio.application.web.problems import RefusedError, problem_body
from pie_trio.application.web.shell.access import Access, log_access
from pie_trio.application.web.shell.admission import Admission, peer_group
from pie_trio.application.web.shell.connection import Connection
from pie_trio.application.web.shell.protocol import Peer
from pie_trio.application.web.shell.shared import Shared
from pie_trio.application.web.shell.tls import LingeringStream

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from hypercorn.typing import ASGIFramework

    from pie_trio.application.web.shell.config import ShellConfig
    from pie_trio.application.web.shell.listeners import Listener

__all__ = ["serve"]

MAX_REFUSALS = 64
"""Told at once that there are too many connections; more are closed without a word."""

REFUSAL_SECONDS = 0.5

SPEAK_TLS = "this port speaks TLS: send the request to https://"

logger = logging.getLogger(__name__)


async def serve(
    app: ASGIFramework,
    listeners: Sequence[Listener],
    config: ShellConfig,
    *,
    shutdown: trio.Event,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an application until ``shutdown`` is set and all connections have ended.

    When it is set, nobody can connect any more, idle connections are closed, and handlers are
    told (see :func:`~pie_trio.application.web.streaming.get_draining`). After
    ``config.drain_seconds`` open WebSockets are closed with 1001, what still runs is
    cancelled, and ``config.close_seconds`` later all is closed. If this call is cancelled,
    everything is closed at once.

    ASGI's lifespan events are not sent: what the application needs is opened around this call.

    Args:
        app: An ASGI application for trio.
        listeners: Closed when it stops.
        config: Limits and times.
        shutdown: Set it to stop.
        task_status: Gets the URLs when connections are taken.
    """
    shared, admission = Shared(app, config), Admission(config)
    open_now = dict[Connection, None]()
    all_ended = trio.Event()
    num_refusals = 0

    async def handle(listener: Listener, stream: trio.SocketStream) -> None:
        nonlocal num_refusals
        try:
            peer = _make_peer(stream, is_secure=listener.ssl_context is not None)
        except OSError:
            stream.socket.close()  # it left before it was taken
            return
        group = peer_group(peer.client[0] if peer.client else None)
        try:
            admission.enter(group)
        except RefusedError as error:
            if num_refusals < MAX_REFUSALS and not peer.is_secure:
                num_refusals += 1
                try:
                    await _turn_away(stream, error)
                finally:
                    num_refusals -= 1
            stream.socket.close()
            log_access(Access(peer.name, "-", "-", error.status, 0, 0.0, "refused"))
            return
        try:
            await _serve_one(stream, listener, shared, peer, open_now)
        except Exception:
            logger.exception("a connection failed")
        finally:
            admission.leave(group)
            stream.socket.close()
            if shared.is_draining and not open_now:
                all_ended.set()

    with closing(shared.hangups):
        async with trio.open_nursery() as watching:
            watching.start_soon(shared.hangups.run)
            async with trio.open_nursery() as connections:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(
                            partial(
                                trio.serve_listeners,
                                partial(handle, listener),
                                [listener.socket],
                                handler_nursery=connections,
                            )
                        )
                    task_status.started([listener.url for listener in listeners])
                    await shutdown.wait()
                    accepting.cancel_scope.cancel()
                await shared.drain()
                for connection in list(open_now):
                    connection.drain()
                if open_now:
                    with trio.move_on_after(config.drain_seconds):
                        await all_ended.wait()
                deadline = trio.current_time() + config.close_seconds
                connections.cancel_scope.deadline = deadline
                for connection in list(open_now):
                    await connection.stop()
            watching.cancel_scope.cancel()


def _make_peer(stream: trio.SocketStream, *, is_secure: bool) -> Peer:
    name: Any = stream.socket.getsockname()
    client: Any = stream.socket.getpeername()
    if stream.socket.family == socket.AF_UNIX:
        return Peer(name="unix", client=None, server=None, is_secure=is_secure)
    return Peer(
        name=str(client[0]),
        client=(client[0], client[1]),
        server=(name[0], name[1]),
        is_secure=is_secure,
    )


async def _serve_one(
    tcp: trio.SocketStream,
    listener: Listener,
    shared: Shared,
    peer: Peer,
    open_now: dict[Connection, None],
) -> None:
    stream: trio.abc.Stream = tcp
    if listener.ssl_context is not None:
        tls = await _shake_hands(tcp, listener.ssl_context, shared.config)
        if tls is None:
            return
        stream = tls
    connection = Connection(stream, shared, peer)
    if shared.is_draining:
        return
    shared.hangups.watch(tcp.socket.fileno(), connection.abort)
    open_now[connection] = None
    try:
        await connection.run()
    finally:
        del open_now[connection]
        shared.hangups.forget(tcp.socket.fileno())


async def _shake_hands(
    tcp: trio.SocketStream, context: ssl.SSLContext, config: ShellConfig
) -> trio.SSLStream[LingeringStream] | None:
    """Return the secure stream, or None if the client does not agree to one in time."""
    tls = trio.SSLStream(
        LingeringStream(tcp), context, server_side=True, https_compatible=True
    )
    try:
        with trio.fail_after(config.handshake_seconds):
            if await _begins_as_http(tcp):
                await _turn_away(tcp, RefusedError(400, SPEAK_TLS))
                return None
            await tls.do_handshake()
    except (OSError, trio.BrokenResourceError, trio.TooSlowError) as error:
        logger.debug("no TLS with a client: %s", error.__cause__ or error)
        return None
    return tls


async def _begins_as_http(tcp: trio.SocketStream) -> bool:
    """Say whether a client begins with a method of HTTP; what it sent is still to be read.

    Raises:
        OSError: The client is gone.
    """
    beginning: bytes = await tcp.socket.recv(1, socket.MSG_PEEK)
    return beginning.isalpha()  # TLS begins with 0x16


async def _turn_away(stream: trio.SocketStream, error: RefusedError) -> None:
    """Say why, and wait a little for the client to hear it."""
    body = problem_body(error.status, error.message)
    head = (
        f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n"
    )
    for name, value in error.headers:
        head += f"{name.decode()}: {value.decode()}\r\n"
    with trio.move_on_after(REFUSAL_SECONDS):
        try:
            await stream.send_all(f"{head}\r\n".encode() + body)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
