"""Who sends a request: the one place that decides it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar, cast
from urllib.parse import urlsplit

import trio
from quart import g, request, websocket
from quart.wrappers.response import IterableBody

from pie_trio.application.server.failures import UnauthorizedError
from pie_trio.application.server.keys import SCOPES, USER, Scope
from pie_trio.application.server.keys_sessions import COOKIE, Sessions
from pie_trio.application.web import FeedBody
from pie_trio.control.quotas import KeyLimits
from pie_trio.errors import BadArgumentError, ForbiddenError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Collection, Iterable

    from quart.wrappers import Request, Response, Websocket

    from pie_trio.application.server.keys import Key, KeyRing
    from pie_trio.application.web import WebApp

__all__ = [
    "LOCAL",
    "Gate",
    "Owner",
    "Scope",
    "add_gate",
    "asks_for_keys",
    "authenticate",
    "authorize",
    "is_loopback",
    "open_to_all",
]

USUAL_SCOPES: frozenset[Scope] = frozenset({"launch", "upload"})
STREAM_AGE_SECONDS = 0.25
"""Streams send often; so much later they may end than their key was revoked."""
ACT_AS = "pie-user"
"""The header by which an admin acts for another user."""
LOGIN_HINT = "send `Authorization: Bearer KEY` (commands of pie: --key or PIE_KEY)"

View = TypeVar("View", bound="Callable[..., object]")


@dataclass(frozen=True, slots=True)
class Owner:
    """On whose behalf something is done. Programs and instances belong to one.

    Attributes:
        name: Unique on the server. Two of one name are the same owner, whatever their keys.
        scopes: What this request may do.
        key_id: Of the key that was sent; empty without one.
        key: Limits of that key, if it has some.
    """

    name: str
    scopes: frozenset[Scope] = field(default=USUAL_SCOPES, compare=False)
    key_id: str = field(default="", compare=False)
    key: KeyLimits | None = field(default=None, compare=False)

    @property
    def is_admin(self) -> bool:
        """Everything of everyone is at its disposal."""
        return "admin" in self.scopes


LOCAL = Owner("local", frozenset(SCOPES))
"""Whoever can reach a server without keys."""


class Gate:
    """Finds out who sends a request.

    Args:
        keys: Of the server; None where whoever reaches it may use it.
        names: Under which it is reached, besides addresses and names without a dot. Counts
            without keys only, where a page of another site could give its name our address.
            None for any.
        now: The time in seconds, for logins.
    """

    def __init__(
        self,
        keys: KeyRing | None = None,
        *,
        names: Collection[str] | None = None,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self.keys, self._names = keys, names
        self.sessions = Sessions(now)

    def identify(self, request: Request | Websocket) -> Owner:
        """Return who sends a request.

        Raises:
            UnauthorizedError: It has no key, or none that is known.
            ForbiddenError: A page of another site sends it, with the rights of whoever looks
                at it; or the key may not act for others.
            KeyStoreError: The keys cannot be read.
        """
        self.check_site(request)
        return _acting(self._sender(request), request.headers.get(ACT_AS))

    def check_site(self, request: Request | Websocket) -> None:
        """Raise if a page of another site sends a request.

        Raises:
            ForbiddenError: One does.
        """
        origin, host = request.headers.get("origin"), request.headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc != host:
            raise ForbiddenError(
                f"a page of {origin[:80]} may not use this server: send requests from a "
                "program, or from a page that this server's own address has served"
            )
        # To its browser, a page whose own name leads here is a page of this server.
        if self.keys is None and self._names is not None:
            name = _host_name(host)
            if not (_is_local_name(name) or name in self._names):
                raise ForbiddenError(
                    f"this server is not called {name[:80]}: use its address, or start it "
                    f"with --name {name[:80]}, or with --keys on"
                )

    def check_key(self, text: str) -> Key:
        """Return what is known of a key.

        Raises:
            UnauthorizedError: Nothing is.
            KeyStoreError: The keys cannot be read.
        """
        key = self.keys.find(text) if self.keys is not None else None
        if key is None:
            raise UnauthorizedError(
                "this key is not known here, or was revoked: ask whoever runs the server for "
                "a new one (pie keys add NAME)"
            )
        return key

    def is_revoked(self, owner: Owner, *, max_age_seconds: float = 0.0) -> bool:
        """Say whether a key that was known is not any more; see :meth:`KeyRing.get`."""
        if self.keys is None or not owner.key_id:
            return False
        return self.keys.get(owner.key_id, max_age_seconds=max_age_seconds) is None

    def _sender(self, request: Request | Websocket) -> Owner:
        if self.keys is None:
            return LOCAL
        given = request.headers.get("authorization")
        if given is not None:
            scheme, _, text = given.partition(" ")
            if scheme.lower() != "bearer":
                raise UnauthorizedError(
                    f"this server does not know {scheme[:20]!r}: {LOGIN_HINT}"
                )
            return _owner_of(self.check_key(text.strip()))
        token = request.cookies.get(COOKIE)
        if token is None:
            raise UnauthorizedError(
                f"this server asks for a key: {LOGIN_HINT}; whoever runs it makes one with "
                "`pie keys add NAME`"
            )
        key_id = self.sessions.find(token)
        key = self.keys.get(key_id) if key_id is not None else None
        if key is None:
            raise UnauthorizedError("this login has ended: log in again")
        return _owner_of(key)


def open_to_all(view: View) -> View:
    """Mark a handler that answers without a key: it tells nothing of anybody."""
    view.is_open_to_all = True  # type: ignore[attr-defined]  # functions have attributes
    return view


def add_gate(app: WebApp, gate: Gate) -> None:
    """Let every request of an application pass the gate, but to what is open to all.

    So a route that forgets to ask :func:`authenticate` answers nobody without a key. A stream
    ends at the first that it would send after its key was revoked, be it a heartbeat.
    """

    def is_open(endpoint: str | None) -> bool:
        view = app.view_functions.get(endpoint or "")
        return bool(getattr(view, "is_open_to_all", False))

    async def pass_request() -> None:
        if not is_open(request.endpoint):
            g.owner = gate.identify(request)

    async def pass_websocket() -> None:
        g.owner = gate.identify(websocket)

    async def watch_stream(response: Response) -> Response:
        owner, body = g.get("owner"), response.response
        if owner is None or gate.keys is None:
            return response
        if isinstance(body, FeedBody):
            body.end_when(
                lambda: gate.is_revoked(owner, max_age_seconds=STREAM_AGE_SECONDS)
            )
        elif isinstance(body, IterableBody):
            response.response = IterableBody(_until_revoked(body, gate, owner))
        return response

    app.before_request(pass_request)
    app.before_websocket(pass_websocket)
    app.after_request(watch_stream)


def authenticate(request: Request | Websocket) -> Owner:
    """Return who sends a request, whatever the key is for: to look at programs and models.

    Every route asks here or :func:`authorize`, and nowhere else.
    """
    del request  # it is the one that is being answered, which has passed the gate
    return cast("Owner", g.owner)


def authorize(request: Request | Websocket, scope: Scope) -> Owner:
    """Return who sends a request that needs a scope.

    Args:
        request: That is being answered.
        scope: ``launch`` for all that is done with instances, ``upload`` to change programs,
            ``metrics`` to read what the server counts, ``admin`` for what is of the server.

    Raises:
        ForbiddenError: The key is not for this.
    """
    owner = authenticate(request)
    if scope not in owner.scopes and not owner.is_admin:
        has = ", ".join(sorted(owner.scopes)) or "nothing"
        raise ForbiddenError(
            f"this needs a key with the scope {scope}, and the one of {owner.name} is for "
            f"{has}: whoever runs the server makes one with `pie keys add {owner.name} "
            f"--scope {scope}`"
        )
    return owner


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host; a name that may be any does not count."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def asks_for_keys(mode: str, hosts: Iterable[str]) -> bool:
    """Say whether requests need a key.

    Args:
        mode: ``on``, ``off``, or ``auto`` for wherever others than this machine reach it.
        hosts: On which it listens.
    """
    return mode == "on" or (mode == "auto" and not all(map(is_loopback, hosts)))


async def _until_revoked(
    body: IterableBody, gate: Gate, owner: Owner
) -> AsyncGenerator[bytes]:
    async with body as chunks:
        async for chunk in chunks:
            if gate.is_revoked(owner, max_age_seconds=STREAM_AGE_SECONDS):
                return
            yield chunk


def _owner_of(key: Key) -> Owner:
    limits = KeyLimits.of(key.key_id, key.limits) if key.limits else None
    return Owner(key.user, key.scopes, key.key_id, limits)


def _acting(sender: Owner, user: str | None) -> Owner:
    """Return on whose behalf a request is: another user's, if an admin says so."""
    if user is None:
        return sender
    if not sender.is_admin:
        raise ForbiddenError(
            f"only a key with the scope admin may act for another user ({ACT_AS}, --user)"
        )
    if not USER.fullmatch(user):
        raise BadArgumentError(f"{ACT_AS} is {user[:80]!r}, which is no name of a user")
    return Owner(user, frozenset(SCOPES) - {"admin"}, sender.key_id, sender.key)


def _host_name(host: str) -> str:
    """Return a Host header without its port, and without the brackets of IPv6."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()


def _is_local_name(name: str) -> bool:
    """Say whether no stranger can make a name lead to this machine."""
    if ("." not in name and ":" not in name) or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
