"""The Python client of a server: :class:`Client` for trio and asyncio, :class:`BlockingClient` for the rest."""

from pie_trio.client.blocking import (
    BlockingClient,
    BlockingFunction,
    BlockingInstance,
    BlockingRun,
    BlockingSession,
    inferlet,
)
from pie_trio.client.client import Client
from pie_trio.client.errors import (
    BrokenConnectionError,
    ConflictError,
    DeniedError,
    InstanceCancelledError,
    InstanceFailedError,
    InvalidRequestError,
    MissingError,
    OverloadedError,
    ProgramFailedError,
    RefusedError,
    RemoteError,
    UnreachableError,
)
from pie_trio.client.events import (
    End,
    Event,
    Failure,
    Log,
    Lost,
    Message,
    Outcome,
    Receiving,
    Result,
    Started,
)
from pie_trio.client.functions import RemoteFunction
from pie_trio.client.instances import Instance, Run
from pie_trio.client.records import InstanceStatus, LogLine, Logs, Program
from pie_trio.client.session import Session

__all__ = [
    "BlockingClient",
    "BlockingFunction",
    "BlockingInstance",
    "BlockingRun",
    "BlockingSession",
    "BrokenConnectionError",
    "Client",
    "ConflictError",
    "DeniedError",
    "End",
    "Event",
    "Failure",
    "Instance",
    "InstanceCancelledError",
    "InstanceFailedError",
    "InstanceStatus",
    "InvalidRequestError",
    "Log",
    "LogLine",
    "Logs",
    "Lost",
    "Message",
    "MissingError",
    "Outcome",
    "OverloadedError",
    "Program",
    "ProgramFailedError",
    "Receiving",
    "RefusedError",
    "RemoteError",
    "RemoteFunction",
    "Result",
    "Run",
    "Session",
    "Started",
    "UnreachableError",
    "inferlet",
]
