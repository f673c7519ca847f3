"""Bodies of requests, bounded: a handler that does not read holds up its client, not memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import trio
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["BoundedBody", "BoundedRequest"]

HIGH_WATER_BYTES = 256 << 10


class BoundedBody(TrioBody):
    """A body that is read piece by piece (``async for``) or as a whole (``await``).

    Quart's takes everything that comes, and limits only what is not read yet. Here the limit
    is for all of the body, and what is not read stays with the client.
    """

    def __init__(self, expected: int | None, limit: int | None) -> None:
        super().__init__(expected, limit)
        self._limit = limit
        self._num_bytes = 0
        self._is_whole = False  # it is awaited as a whole: the limit is its only bound
        self._has_room = trio.Event()
        if self._must_raise is not None:
            self._refuse(expected)

    async def put(self, data: bytes) -> None:
        """Append a piece, and wait while there is more than enough.

        Over the limit it waits until it is cancelled, as the handler ends.
        """
        self._num_bytes += len(data)
        if self._limit is not None and self._num_bytes > self._limit:
            self._refuse(None)
        if self._must_raise is not None:
            await trio.sleep_forever()  # the rest stays with the client
        if not data:
            return
        self._data.extend(data)
        self._has_data.set()
        while len(self._data) >= HIGH_WATER_BYTES and not self._is_whole:
            self._has_room = trio.Event()
            await self._has_room.wait()

    async def __anext__(self) -> bytes:
        """Return what has come since.

        Raises:
            RequestEntityTooLarge: There is more than the limit.
        """
        while True:
            if self._must_raise is not None:
                raise self._must_raise
            if self._data:
                data = bytes(self._data)
                self._data.clear()
                self._has_room.set()
                return data
            if self._complete.is_set():
                raise StopAsyncIteration
            self._has_data.clear()
            await self._has_data.wait()

    def __await__(self) -> Generator[Any, None, Any]:
        """Return all of it."""
        self._is_whole = True
        self._has_room.set()
        return super().__await__()

    def _refuse(self, expected: int | None) -> None:
        came = "more" if expected is None else f"{expected} bytes"
        self._must_raise = RequestEntityTooLarge(
            f"this path takes bodies of at most {self._limit} bytes, but {came} came"
        )
        self._data.clear()
        self.set_complete()


class BoundedRequest(TrioRequest):
    """A request with such a body."""

    body_class: type[TrioBody] = BoundedBody

    def limit_body(self, limit: int) -> None:
        """Change the limit, before any of the body was read."""
        self.max_content_length = limit
        self.body = BoundedBody(self.content_length, limit)

    async def get_json(
        self, force: bool = False, silent: bool = False, cache: bool = True
    ) -> Any:
        """Return the body as JSON.

        Raises:
            BadRequest: It is none, in whichever way.
        """
        try:
            return await super().get_json(force, silent, cache)
        except UnicodeDecodeError as error:
            raise BadRequest("the body is no JSON: it is not UTF-8") from error
        except RecursionError as error:
            raise BadRequest("the body is no JSON: it is nested too deep") from error

    def on_json_loading_failed(self, error: Exception) -> NoReturn:
        """Say what is wrong with it."""
        raise BadRequest(f"the body is no JSON: {error}") from error
