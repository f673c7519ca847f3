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
from inferlet_py._context import Context
from inferlet_py._deadlock import DeadlockError
from inferlet_py._distribution import Distribution
from inferlet_py._errors import (
    BadArgumentError,
    CommandCancelledError,
    EngineFailedError,
    HostError,
    LimitError,
    OutOfPagesError,
    TimedOutError,
    UnknownHandleError,
    UnsupportedError,
)
from inferlet_py._generation import Chunk, Generation
from inferlet_py._host import ModelInfo
from inferlet_py._inferlet import Inferlet, inferlet
from inferlet_py._messages import get_instance_id, get_version, log, send
from inferlet_py._models import Model, available_models, get_model
from inferlet_py._nursery import Nursery, open_nursery
from inferlet_py._sampling import Greedy, MinP, Multinomial, Sampler, TopK, TopP
from inferlet_py._scopes import CancelScope, current_effective_deadline
from inferlet_py._signature import SignatureError, WrongArgumentError
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

__all__ = [
    "BadArgumentError",
    "BrokenResourceError",
    "CancelScope",
    "Cancelled",
    "CapacityLimiter",
    "Chunk",
    "ClosedResourceError",
    "CommandCancelledError",
    "Context",
    "DeadlockError",
    "Distribution",
    "EndOfChannel",
    "EngineFailedError",
    "Event",
    "Generation",
    "Greedy",
    "HostError",
    "Inferlet",
    "LimitError",
    "Lock",
    "MemoryReceiveChannel",
    "MemorySendChannel",
    "MinP",
    "Model",
    "ModelInfo",
    "Multinomial",
    "Nursery",
    "OutOfPagesError",
    "Sampler",
    "SignatureError",
    "TimedOutError",
    "TooSlowError",
    "TopK",
    "TopP",
    "UnknownHandleError",
    "UnsupportedError",
    "WouldBlock",
    "WrongArgumentError",
    "available_models",
    "checkpoint",
    "current_effective_deadline",
    "current_time",
    "fail_after",
    "fail_at",
    "get_instance_id",
    "get_model",
    "get_version",
    "inferlet",
    "log",
    "move_on_after",
    "move_on_at",
    "open_memory_channel",
    "open_nursery",
    "send",
    "sleep",
    "sleep_forever",
    "sleep_until",
]

# Tracebacks and help() name things as authors import them, not by our private modules.
for _value in [globals()[_name] for _name in __all__]:
    if hasattr(_value, "__module__"):
        _value.__module__ = __name__
