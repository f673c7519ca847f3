"""Values of the boundary between a program and its host, as JSON and back."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from pie_trio.application.wasm.values import ResultValue
from pie_trio.errors import EngineError, InferletError

__all__ = ["ReplayedError", "decode", "encode"]


class ReplayedError(InferletError):
    """What a call answered when it was recorded."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code  # type: ignore[misc]  # the class attribute of others


def encode(value: Any) -> Any:
    """Return a value of the boundary as JSON; what JSON lacks is an object with one key."""
    whole = value  # which no `isinstance` has narrowed
    if value is None or isinstance(value, bool | str | int | float):
        return whole
    if isinstance(value, np.generic):
        return whole.item()
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(whole).tobytes()).decode()
        return {"array": [str(whole.dtype), list(whole.shape), data]}
    if isinstance(value, ResultValue):
        return {"result": [whole.is_ok, encode(whole.value)]}
    if isinstance(value, InferletError | EngineError):
        return {"error": [value.code, str(value)]}
    if isinstance(value, Exception):
        raise value  # a bug of the host's, which nobody replays
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in whole.items()]}
    items = [encode(item) for item in whole]
    if isinstance(value, tuple):
        return {"tuple": items}
    return {"set": sorted(items)} if isinstance(value, frozenset | set) else items


def decode(value: Any) -> Any:
    """Return what :func:`encode` was given."""
    whole = value
    if isinstance(value, list):
        return [decode(item) for item in whole]
    if not isinstance(value, dict):
        return whole
    kind: str
    content: Any
    ((kind, content),) = whole.items()
    match kind:
        case "bytes":
            return base64.b64decode(content)
        case "array":
            dtype, shape, data = content
            flat = np.frombuffer(base64.b64decode(data), np.dtype(dtype))
            return flat.reshape(shape).copy()
        case "result":
            result: ResultValue[Any] = ResultValue(content[0], decode(content[1]))
            return result
        case "error":
            return ReplayedError(*content)
        case "dict":
            return {decode(k): decode(v) for k, v in content}
        case "tuple":
            return tuple(decode(item) for item in content)
        case _:
            return frozenset(decode(item) for item in content)
