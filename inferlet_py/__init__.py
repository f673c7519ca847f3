"""Write programs that drive LLM generation and run inside Pie.

Everything an author needs is here: ``from inferlet_py import Context, inferlet, send``.
"""

from inferlet_py._cancellation import Cancelled
from inferlet_py._channels import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfChannel,
    MemoryReceiveChannel,
    MemorySendChannel,
    open_memory_channel,
)
from inferlet_py._checkpoints import checkpoint
from inferlet_py._children import Child, ChildFailedError, spawn
from inferlet_py._context import Context
from inferlet_py._deadlock import DeadlockError
from inferlet_py._distribution import Distribution
from inferlet_py._errors import (
    BadArgumentError,
    CommandCancelledError,
    EngineFailedError,
    FailedError,
    ForbiddenError,
    HostError,
    LimitError,
    NotFoundError,
    OutOfEmbedsError,
    OutOfPagesError,
    TimedOutError,
    UnknownHandleError,
    UnsupportedError,
)
from inferlet_py._generation import Chunk, Generation
from inferlet_py._host import BroadcastMessage, ModelInfo
from inferlet_py._http import HttpResponse, http_get, http_post, http_request
from inferlet_py._inferlet import Inferlet, inferlet
from inferlet_py._messages import (
    get_instance_id,
    get_version,
    log,
    messages,
    receive,
    send,
)
from inferlet_py._models import (
    Model,
    available_models,
    available_traits,
    get_model,
    models_with_traits,
)
from inferlet_py._nursery import Nursery, open_nursery
from inferlet_py._queues import Command, Embed, KvPage, Output, Outputs, Queue
from inferlet_py._runtime import (
    debug_query,
    get_owner,
    memory_pressure,
    span,
    suspend_pages,
)
from inferlet_py._sampling import Greedy, MinP, Multinomial, Sampler, TopK, TopP
from inferlet_py._scopes import CancelScope, current_effective_deadline
from inferlet_py._signature import SignatureError, WrongArgumentError
from inferlet_py._store import Store, store
from inferlet_py._sync import CapacityLimiter, Event, Lock, WouldBlock
from inferlet_py._timeouts import (
    TooSlowError,
    current_time,
    fail_after,
    fail_at,
    move_on_after,
    move_on_at,
    sleep,
    sleep_forever,
    sleep_until,
)
from inferlet_py._topics import Subscription, broadcast, subscribe

__all__ = [
    "BadArgumentError",
    "BroadcastMessage",
    "BrokenResourceError",
    "CancelScope",
    "Cancelled",
    "CapacityLimiter",
    "Child",
    "ChildFailedError",
    "Chunk",
    "ClosedResourceError",
    "Command",
    "CommandCancelledError",
    "Context",
    "DeadlockError",
    "Distribution",
    "Embed",
    "EndOfChannel",
    "EngineFailedError",
    "Event",
    "FailedError",
    "ForbiddenError",
    "Generation",
    "Greedy",
    "HostError",
    "HttpResponse",
    "Inferlet",
    "KvPage",
    "LimitError",
    "Lock",
    "MemoryReceiveChannel",
    "MemorySendChannel",
    "MinP",
    "Model",
    "ModelInfo",
    "Multinomial",
    "NotFoundError",
    "Nursery",
    "OutOfEmbedsError",
    "OutOfPagesError",
    "Output",
    "Outputs",
    "Queue",
    "Sampler",
    "SignatureError",
    "Store",
    "Subscription",
    "TimedOutError",
    "TooSlowError",
    "TopK",
    "TopP",
    "UnknownHandleError",
    "UnsupportedError",
    "WouldBlock",
    "WrongArgumentError",
    "available_models",
    "available_traits",
    "broadcast",
    "checkpoint",
    "current_effective_deadline",
    "current_time",
    "debug_query",
    "fail_after",
    "fail_at",
    "get_instance_id",
    "get_model",
    "get_owner",
    "get_version",
    "http_get",
    "http_post",
    "http_request",
    "inferlet",
    "log",
    "memory_pressure",
    "messages",
    "models_with_traits",
    "move_on_after",
    "move_on_at",
    "open_memory_channel",
    "open_nursery",
    "receive",
    "send",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "span",
    "spawn",
    "store",
    "subscribe",
    "suspend_pages",
]

# Tracebacks and help() name things as authors import them, not by our private modules.
for _value in [globals()[_name] for _name in __all__]:
    if hasattr(_value, "__module__"):
        _value.__module__ = __name__
