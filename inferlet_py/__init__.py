"""Write programs that drive LLM generation and run inside Pie.

Everything an author needs is here: ``from inferlet_py import Context, inferlet, send``.
"""

from inferlet_py._cancellation import Cancelled
from inferlet_py._channels import (
    BrokenResourceError,
    ClosedResourceError,
    EndOfChannel,
    MemoryChannelStatistics,
    MemoryReceiveChannel,
    MemorySendChannel,
    open_memory_channel,
)
from inferlet_py._chat import Chat
from inferlet_py._checkpoints import checkpoint, checkpoint_if_cancelled
from inferlet_py._children import Child, ChildFailedError, spawn
from inferlet_py._context import Context
from inferlet_py._deadlock import DeadlockError
from inferlet_py._distribution import Distribution
from inferlet_py._errors import (
    BadArgumentError,
    BusyError,
    CommandCancelledError,
    EngineFailedError,
    EngineLostError,
    ExportLostError,
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
from inferlet_py._gather import gather
from inferlet_py._generation import Chunk, Generation
from inferlet_py._host import BroadcastMessage, ModelInfo
from inferlet_py._http import HttpResponse, http_get, http_post, http_request
from inferlet_py._http_stream import HttpStream, http_stream
from inferlet_py._inferlet import Inferlet, inferlet, schema_of
from inferlet_py._json import JsonReader, WrongJsonError
from inferlet_py._json_output import (
    JsonOutput,
    WrongValueError,
    generate_json,
    json_schema,
    read_json,
)
from inferlet_py._mcp import McpClient, McpError
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
from inferlet_py._nursery import (
    TASK_STATUS_IGNORED,
    Nursery,
    TaskStatus,
    open_nursery,
)
from inferlet_py._processors import Grammar, Processor
from inferlet_py._queues import Command, Embed, KvPage, Output, Outputs, Queue
from inferlet_py._reply import Reply
from inferlet_py._retry import retry
from inferlet_py._runtime import (
    debug_query,
    get_owner,
    memory_pressure,
    span,
    suspend_pages,
)
from inferlet_py._sampling import Greedy, MinP, Multinomial, Sampler, TopK, TopP
from inferlet_py._scopes import CancelScope, current_effective_deadline
from inferlet_py._signature import (
    SignatureError,
    WrongArgumentError,
    WrongResultError,
)
from inferlet_py._sse import EventReader, ServerSentEvent
from inferlet_py._stopping import (
    Progress,
    StopCondition,
    Until,
    after_lines,
    after_seconds,
    after_tokens,
    at_pattern,
    until,
)
from inferlet_py._store import Store, store
from inferlet_py._sync import CapacityLimiter, Event, Lock, Semaphore, WouldBlock
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
from inferlet_py._tool_calls import ToolCallParser
from inferlet_py._tool_grammar import tool_call_grammar
from inferlet_py._tools import Tool, ToolCall, ToolResult, run_tools, tool
from inferlet_py._topics import Subscription, broadcast, subscribe

__all__ = [
    "TASK_STATUS_IGNORED",
    "BadArgumentError",
    "BroadcastMessage",
    "BrokenResourceError",
    "BusyError",
    "CancelScope",
    "Cancelled",
    "CapacityLimiter",
    "Chat",
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
    "EngineLostError",
    "Event",
    "EventReader",
    "ExportLostError",
    "FailedError",
    "ForbiddenError",
    "Generation",
    "Grammar",
    "Greedy",
    "HostError",
    "HttpResponse",
    "HttpStream",
    "Inferlet",
    "JsonOutput",
    "JsonReader",
    "KvPage",
    "LimitError",
    "Lock",
    "McpClient",
    "McpError",
    "MemoryChannelStatistics",
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
    "Processor",
    "Progress",
    "Queue",
    "Reply",
    "Sampler",
    "Semaphore",
    "ServerSentEvent",
    "SignatureError",
    "StopCondition",
    "Store",
    "Subscription",
    "TaskStatus",
    "TimedOutError",
    "TooSlowError",
    "Tool",
    "ToolCall",
    "ToolCallParser",
    "ToolResult",
    "TopK",
    "TopP",
    "UnknownHandleError",
    "UnsupportedError",
    "Until",
    "WouldBlock",
    "WrongArgumentError",
    "WrongJsonError",
    "WrongResultError",
    "WrongValueError",
    "after_lines",
    "after_seconds",
    "after_tokens",
    "at_pattern",
    "available_models",
    "available_traits",
    "broadcast",
    "checkpoint",
    "checkpoint_if_cancelled",
    "current_effective_deadline",
    "current_time",
    "debug_query",
    "fail_after",
    "fail_at",
    "gather",
    "generate_json",
    "get_instance_id",
    "get_model",
    "get_owner",
    "get_version",
    "http_get",
    "http_post",
    "http_request",
    "http_stream",
    "inferlet",
    "json_schema",
    "log",
    "memory_pressure",
    "messages",
    "models_with_traits",
    "move_on_after",
    "move_on_at",
    "open_memory_channel",
    "open_nursery",
    "read_json",
    "receive",
    "retry",
    "run_tools",
    "schema_of",
    "send",
    "sleep",
    "sleep_forever",
    "sleep_until",
    "span",
    "spawn",
    "store",
    "subscribe",
    "suspend_pages",
    "tool",
    "tool_call_grammar",
    "until",
]

# Tracebacks and help() name things as authors import them, not by our private modules.
for _value in [globals()[_name] for _name in __all__]:
    if hasattr(_value, "__module__"):
        _value.__module__ = __name__
