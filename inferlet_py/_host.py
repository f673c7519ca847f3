"""The host as the SDK sees it: the functions of the WIT in Python form.

In Wasm they are imports of the component, natively they are calls into a server in the same
process. There is one host for as long as the interpreter lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

from inferlet_py._binding import bind_interfaces
from inferlet_py._host_allocate import (
    ALLOCATE,
    EXPORTS,
    AllocateHost,
    ExportInfo,
    ExportsHost,
)
from inferlet_py._host_decode import (
    DECODE,
    ChunkValues,
    DecodeHost,
    Envelope,
    StreamValues,
)
from inferlet_py._host_forward import (
    FORWARD,
    INPUT_IMAGE,
    INPUT_TEXT,
    OUTPUT_TEXT,
    FilterValues,
    ForwardHost,
    InputImageHost,
    InputTextHost,
    OutputResult,
    OutputTextHost,
    OutputValues,
    SamplerValues,
)
from inferlet_py._host_messaging import (
    CHILDREN,
    MESSAGING,
    TOPICS,
    BroadcastMessage,
    ChildOutcome,
    ChildrenHost,
    Message,
    MessagingHost,
    TopicsHost,
)
from inferlet_py._host_models import MODELS, ModelInfo, ModelsHost
from inferlet_py._host_outside import (
    HTTP,
    STORE,
    HttpHost,
    RequestValues,
    ResponseValues,
    StoreHost,
)
from inferlet_py._host_processors import (
    PROCESSORS,
    ProcessorsHost,
    ProcessorSpec,
)
from inferlet_py._host_queues import QUEUES, QueuesHost
from inferlet_py._host_runtime import RUNTIME, RuntimeHost
from inferlet_py._host_tickets import TICKETS, TicketsHost
from inferlet_py._host_tokenize import TOKENIZE, ChatValues, TokenizeHost

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "INTERFACES",
    "BroadcastMessage",
    "ChatValues",
    "ChildOutcome",
    "ChunkValues",
    "Envelope",
    "ExportInfo",
    "FilterValues",
    "Host",
    "Message",
    "ModelInfo",
    "OutputResult",
    "OutputValues",
    "ProcessorSpec",
    "RequestValues",
    "ResponseValues",
    "SamplerValues",
    "StreamValues",
    "bind_host",
    "connect",
    "get_host",
]

INTERFACES = (
    RUNTIME,
    MESSAGING,
    TICKETS,
    MODELS,
    QUEUES,
    ALLOCATE,
    FORWARD,
    INPUT_TEXT,
    INPUT_IMAGE,
    OUTPUT_TEXT,
    TOKENIZE,
    DECODE,
    PROCESSORS,
    EXPORTS,
    TOPICS,
    STORE,
    HTTP,
    CHILDREN,
)


class Host(
    RuntimeHost,
    MessagingHost,
    TicketsHost,
    ModelsHost,
    QueuesHost,
    AllocateHost,
    ForwardHost,
    InputTextHost,
    InputImageHost,
    OutputTextHost,
    TokenizeHost,
    DecodeHost,
    ProcessorsHost,
    ExportsHost,
    TopicsHost,
    StoreHost,
    HttpHost,
    ChildrenHost,
    Protocol,
):
    """One method a function of the WIT; a failed call raises ``HostError``."""


def bind_host(modules: Mapping[str, Any], failure: type[Exception]) -> Host:
    """Return the host on imported modules, by name of their interface.

    Args:
        modules: componentize-py's, or what looks like them.
        failure: What their functions raise: its ``value`` is the WIT's record ``error``.
    """
    return cast("Host", bind_interfaces(INTERFACES, modules, failure))


_connected: list[Host] = []


def connect(host: Host | None) -> None:
    """Make ``host`` the one that this interpreter talks to; None for none any more."""
    _connected[:] = [] if host is None else [host]


def get_host() -> Host:
    """Return the host.

    Raises:
        RuntimeError: The program runs outside of Pie.
    """
    if not _connected:
        raise RuntimeError(
            "this program is not running inside Pie: start it with `pie run PROGRAM`"
        )
    return _connected[0]
