"""Embeddings of texts: what ``/v1/embeddings`` of a server runs.

A program of yours that is deployed as ``openai_embeddings`` takes its place. This one takes the
states behind the last layer, their mean or the last one, and scales that to length 1.
"""

# /// pie
# grants = { logits = true, spawn = false }
# ///

import json
import math
from collections.abc import Sequence
from typing import Any, Literal

from inferlet_py import BadArgumentError, Output, Queue, inferlet, send

NUM_ROWS = 64
"""Tokens whose states are fetched at once: they are some kilobytes each."""


class RefusedError(Exception):
    """The request cannot be served: the client is told why, and which parameter it is."""

    def __init__(
        self, message: str, *, param: str, code: str = "invalid_value"
    ) -> None:
        super().__init__(message)
        self.message, self.param, self.code = message, param, code


@inferlet
async def main(
    input: Sequence[str | list[int]],  # noqa: A002  # OpenAI's name
    model: str = "",
    pooling: Literal["mean", "last"] = "mean",
) -> None:
    """Embed texts.

    Args:
        input: Texts, or lists of tokens.
        model: Name of a model of the server; its default one without.
        pooling: What becomes of the states of the tokens.
    """
    queue, num_tokens = Queue(model), 0
    try:
        for index, text in enumerate(input):
            tokens = (
                queue.model.tokenize(text, special=True)
                if isinstance(text, str)
                else text
            )
            num_tokens += len(tokens)
            state = await _embed(queue, tokens, pooling)
            size = math.sqrt(sum(value * value for value in state)) or 1.0
            await _emit(choice=index, embedding=[value / size for value in state])
    except RefusedError as error:
        await _emit(error=vars(error))
    else:
        await _emit(usage={"prompt_tokens": num_tokens, "completion_tokens": 0})


async def _embed(queue: Queue, tokens: list[int], pooling: str) -> list[float]:
    info = queue.model.info
    if not 0 < len(tokens) <= info.max_positions:
        raise RefusedError(
            f"a text to embed has 1 to {info.max_positions} tokens, got {len(tokens)}",
            param="input",
            code="context_length_exceeded" if tokens else "invalid_value",
        )
    total = [0.0] * info.hidden_size
    step = NUM_ROWS if pooling == "mean" else info.max_forward_tokens
    pages = queue.alloc_kvpages(-(-len(tokens) // info.kv_page_size))
    try:
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            rows = range(len(part)) if pooling == "mean" else [len(part) - 1]
            (output,) = await queue.forward_text(
                part, pages=pages, start=start, outputs=[Output(rows, hidden=True)]
            )
            if pooling == "last":
                total = list(output.hidden[0])
                continue
            for state in output.hidden:
                total = [a + b for a, b in zip(total, state, strict=True)]
    except BadArgumentError as error:
        raise RefusedError(str(error), param="input") from error
    finally:
        for page in pages:
            page.close()
    return total  # the mean but for a factor, which does not last


async def _emit(**event: Any) -> None:
    await send(json.dumps(event).encode())
