"""What the instances of one server share."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from pie_trio.application.background import Background, Lazy, open_background
from pie_trio.application.chat.renderer import open_chat_renderer
from pie_trio.application.outgoing import HttpLimits, make_ssl_context
from pie_trio.application.timeline import Timeline
from pie_trio.application.turns import OwnerTurns
from pie_trio.config import SERVER_LIMITS, InstanceLimits, SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.control.store import Store, StoreLimits, open_store
from pie_trio.control.topics import Topics
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
    from pathlib import Path

    from pie_trio.application.chat.renderer import ChatRenderer
    from pie_trio.application.lifecycle.programs import Program
    from pie_trio.application.outgoing import Lookup
    from pie_trio.control.served_model import ServedModel
    from pie_trio.control.topics import TopicUse

__all__ = ["Grants", "Outgoing", "Services", "open_services"]

MAX_SUBSCRIPTIONS = 256


@dataclass(frozen=True, slots=True)
class Grants:
    """What an instance may do beyond its own sandbox. Everything is refused unless granted.

    Attributes:
        logits: See raw logits and hidden states.
        publish: Export pages for everybody on the server.
        topics: Broadcast to and hear topics of other owners.
        http: Hosts that it may reach: see :mod:`pie_trio.application.outgoing`.
        spawn: Launch children.
    """

    logits: bool = False
    publish: bool = False
    topics: bool = False
    http: tuple[str, ...] = ()
    spawn: bool = True


@dataclass(frozen=True, slots=True)
class Outgoing:
    """How requests to other servers are made.

    Attributes:
        limits: Of one instance.
        lookup: How to find the addresses of a host; None for the system's resolver.
        make_ssl_context: Called in a thread, once, at the first request.
    """

    limits: HttpLimits = field(default_factory=HttpLimits)
    lookup: Lookup | None = None
    make_ssl_context: Callable[[], ssl.SSLContext] = make_ssl_context


def _make_topics() -> Topics:
    """Return topics with the limits of mailboxes; grants are checked before they are asked."""
    limits = InstanceLimits()
    return Topics(
        max_unread=limits.max_unread,
        max_bytes=limits.max_unread_bytes,
        max_mailboxes=MAX_SUBSCRIPTIONS,
        may_use=_may_use,
    )


def _may_use(_owner: str, _topic: str, _use: TopicUse) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Services:
    """What the instances of one server share. Made by :func:`open_services`.

    Made directly, it is for programs that need no more than models and topics.

    Attributes:
        models: By name; the first is the default.
        quotas: What users and the server may use in all.
        topics: What inferlets broadcast to each other.
        background: Where the tasks of instances run.
        get_store: Opens the key-value store at the first call.
        outgoing: How requests are made.
        get_ssl_context: Makes what they are encrypted with at the first call.
        programs_of: Returns what an owner's inferlets may launch by name as a child.
        timeline: What inferlets mark, for people who debug.
        get_renderer: Returns what renders chats; its process starts at the first one.
        compiling: Whose turn it is to have a grammar compiled: one of each owner at once.
        tokenizing: The same for long texts.
    """

    models: Mapping[str, ServedModel] = field(default_factory=dict[str, "ServedModel"])
    quotas: Quotas = field(
        default_factory=lambda: Quotas(SERVER_LIMITS, SharedLimits())
    )
    topics: Topics = field(default_factory=_make_topics)
    background: Background | None = None
    get_store: Callable[[], Awaitable[Store]] | None = None
    outgoing: Outgoing = field(default_factory=Outgoing)
    get_ssl_context: Callable[[], Awaitable[ssl.SSLContext]] | None = None
    programs_of: Callable[[str], Mapping[str, Program]] = lambda _owner: {}
    timeline: Timeline = field(default_factory=Timeline)
    get_renderer: Callable[[], Awaitable[ChatRenderer]] | None = None
    compiling: OwnerTurns = field(default_factory=OwnerTurns)
    tokenizing: OwnerTurns = field(default_factory=OwnerTurns)


@asynccontextmanager
async def open_services(
    models: Mapping[str, ServedModel],
    *,
    store_path: Path | None = None,
    store_limits: StoreLimits | None = None,
    outgoing: Outgoing | None = None,
    programs: Mapping[str, Program] | None = None,
    programs_of: Callable[[str], Mapping[str, Program]] | None = None,
    quotas: Quotas | None = None,
) -> AsyncGenerator[Services]:
    """Offer all services for as long as the block is open; instances have ended by then.

    Args:
        models: By name.
        store_path: Of the store's file, made with its directory when it is first used; None
            keeps the store in memory.
        store_limits: None for the defaults.
        outgoing: None for the defaults.
        programs: What may be launched by name as a child, whoever runs the parent.
        programs_of: The same where owners have programs of their own, by the owner's name.
        quotas: None for the defaults.
    """
    async with open_background() as background:
        requests = outgoing or Outgoing()
        nothing: Mapping[str, Program] = {}
        named = nothing if programs is None else programs  # more may come

        @asynccontextmanager
        async def open_the_store() -> AsyncGenerator[Store]:
            if store_path is not None:
                await trio.to_thread.run_sync(_make_directory, store_path.parent)
            async with open_store(store_path, limits=store_limits) as store:
                yield store

        @asynccontextmanager
        async def open_ssl_context() -> AsyncGenerator[ssl.SSLContext]:
            yield await trio.to_thread.run_sync(requests.make_ssl_context)

        yield Services(
            models,
            quotas or Quotas(SERVER_LIMITS, SharedLimits()),
            background=background,
            get_store=Lazy(background, open_the_store).get,
            outgoing=requests,
            get_ssl_context=Lazy(background, open_ssl_context).get,
            programs_of=programs_of or (lambda _owner: named),
            get_renderer=Lazy(background, open_chat_renderer).get,
        )


def _make_directory(directory: Path) -> None:
    """Make the directory of the store, for this user alone, unless it is there."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cannot make the directory of the store {directory}: "
            f"{os.strerror(error.errno or 0)}"
        ) from error
