"""A call of a tool: the run of a program, its messages as progress, and what it comes to."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any, cast

from pie_trio.application.mcp.protocol import notification
from pie_trio.application.mcp.tools import RESULT, is_result_told, is_wrapped
from pie_trio.application.server.failures import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pie_trio.application.mcp.protocol import RequestId
    from pie_trio.application.server.events import Batch

__all__ = ["ToolRun"]

BINARY = "application/octet-stream"


class ToolRun:
    """Makes the result of a call out of a program's events.

    Args:
        instance_id: Of the run.
        schema: Of what the program returns; empty where it does not say.
        progress_token: Under which progress is told; None if it is not.
        max_bytes: Of all that the result may hold.
    """

    def __init__(
        self,
        instance_id: str,
        schema: Mapping[str, Any],
        *,
        progress_token: RequestId | None,
        max_bytes: int,
    ) -> None:
        self._instance_id, self._schema = instance_id, schema
        self._token, self._max_bytes = progress_token, max_bytes
        self._content = list[dict[str, Any]]()
        self._texts = list[str]()
        self._structured: dict[str, Any] | None = None
        self._is_error = False
        self._num_messages = self._num_bytes = 0

    def add(self, batch: Batch) -> Sequence[dict[str, Any]]:
        """Take the next events, and return what a client that wants progress is told.

        Raises:
            TooLargeError: There are more messages than one result can hold.
        """
        told = list[dict[str, Any]]()
        for event in batch.events:
            self._num_bytes += event.size if event.kind == "message" else 0
            if event.kind == "message":
                told += self._add_message(cast("str | bytes", event.data))
            elif event.kind == "result":
                self._add_result(cast("Mapping[str, Any]", event.data)["value"])
            elif event.kind == "error":
                self._add_error(cast("Mapping[str, Any]", event.data))
        if self._num_bytes > self._max_bytes:
            raise TooLargeError(
                f"the tool has sent more than {self._max_bytes} bytes, too many for one result: "
                "launch the program over /v1/instances instead"
            )
        return told

    def result(self) -> dict[str, Any]:
        """Return what the call comes to, after the last event."""
        self._end_text()
        found: dict[str, Any] = {"content": self._content, "isError": self._is_error}
        if self._structured is not None:
            found["structuredContent"] = self._structured
        return found

    def _add_message(self, message: str | bytes) -> Sequence[dict[str, Any]]:
        self._num_messages += 1
        if isinstance(message, str):
            self._texts.append(message)  # those in a row are pieces of one text
        else:
            self._end_text()
            where = f"pie://instances/{self._instance_id}/messages/{self._num_messages}"
            blob = base64.b64encode(message).decode()
            resource = {"uri": where, "mimeType": BINARY, "blob": blob}
            self._content.append({"type": "resource", "resource": resource})
        if self._token is None:
            return ()
        said = {"message": message} if isinstance(message, str) else {}
        return (
            notification(
                "notifications/progress",
                progressToken=self._token,
                progress=self._num_messages,
                **said,
            ),
        )

    def _add_result(self, value: object) -> None:
        if value is None and not is_result_told(self._schema):
            return
        self._end_text()
        text = (
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )
        self._content.append({"type": "text", "text": text})
        is_object = isinstance(value, dict) and not (
            self._schema and is_wrapped(self._schema)
        )
        self._structured = (
            cast("dict[str, Any]", value) if is_object else {RESULT: value}
        )

    def _add_error(self, error: Mapping[str, Any]) -> None:
        self._end_text()
        kind = error.get("kind")
        text = f"{kind}: {error['message']}" if kind else str(error["message"])
        self._content.append({"type": "text", "text": text})
        self._is_error = True

    def _end_text(self) -> None:
        if self._texts:
            self._content.append({"type": "text", "text": "".join(self._texts)})
            self._texts.clear()
