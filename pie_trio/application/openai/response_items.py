"""The items of a response, and the events that tell them as they grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pie_trio.application.openai.choices import chat_logprobs, new_call_id, new_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pie_trio.application.openai.pieces import Call, TokenLogprob
    from pie_trio.control.detokenize import TokenTexts

__all__ = ["MessageItem", "call_events", "make_call_item"]

EventFields = dict[str, Any]


class MessageItem:
    """A message that the model writes.

    Args:
        output_index: Its place among the items.
        texts: Of the tokens of the model.
    """

    def __init__(self, output_index: int, texts: TokenTexts) -> None:
        self._place = {"output_index": output_index}
        self._texts = texts
        self.item_id = new_id("msg_")
        self._part = {"item_id": self.item_id, **self._place, "content_index": 0}
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> Iterator[EventFields]:
        """Return the events of its beginning."""
        item: EventFields = {**self.fields("in_progress"), "content": []}
        yield {"type": "response.output_item.added", **self._place, "item": item}
        yield {
            "type": "response.content_part.added",
            **self._part,
            "part": {"type": "output_text", "text": "", "annotations": []}
            | {"logprobs": []},
        }

    def add(self, text: str, tokens: Sequence[TokenLogprob]) -> Iterator[EventFields]:
        """Append a text, and return the event that tells it."""
        logprobs = chat_logprobs(tokens, self._texts)
        self._text.append(text)
        self._logprobs += logprobs
        yield {
            "type": "response.output_text.delta",
            **self._part,
            "delta": text,
            "logprobs": logprobs,
        }

    def end(self, status: str, tokens: Sequence[TokenLogprob]) -> Iterator[EventFields]:
        """Return the events of its end, with the last tokens, which have no text."""
        self._logprobs += chat_logprobs(tokens, self._texts)
        (part,) = self.fields(status)["content"]
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        yield {"type": "response.output_text.done", **self._part, **told}
        yield {"type": "response.content_part.done", **self._part, "part": part}
        item = self.fields(status)
        yield {"type": "response.output_item.done", **self._place, "item": item}

    def fields(self, status: str) -> dict[str, Any]:
        """Return it as an item of the output."""
        part = {
            "type": "output_text",
            "text": "".join(self._text),
            "annotations": [],
            "logprobs": list(self._logprobs),
        }
        return {
            "type": "message",
            "id": self.item_id,
            "role": "assistant",
            "status": status,
            "content": [part],
        }


def make_call_item(call: Call) -> dict[str, Any]:
    """Return a call as an item of the output."""
    return {
        "type": "function_call",
        "id": new_id("fc_"),
        "call_id": call.call_id or new_call_id(),
        "name": call.name,
        "arguments": call.arguments,
        "status": "completed",
    }


def call_events(item: dict[str, Any], output_index: int) -> Iterator[EventFields]:
    """Return the events that tell a call."""
    place = {"output_index": output_index}
    empty = item | {"arguments": "", "status": "in_progress"}
    yield {"type": "response.output_item.added", **place, "item": empty}
    part = {"item_id": item["id"], **place}
    text = item["arguments"]
    yield {"type": "response.function_call_arguments.delta", **part, "delta": text}
    yield {
        "type": "response.function_call_arguments.done",
        **part,
        "name": item["name"],
        "arguments": text,
    }
    yield {"type": "response.output_item.done", **place, "item": item}
