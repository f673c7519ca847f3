"""Documents packed into rows of tokens, with a weight for each target.

A batch depends on the seed and its step alone, so a resumed run sees the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from training.corpus import Document, Split, stream
from training.corpus.documents import END_OF_TEXT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tokenizers import Tokenizer

PROMPT_WEIGHT = 0.1
_MAX_WEIGHT, _FULL_LENGTH = 4.0, 8


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to train on: ``token_ids`` and ``targets`` int64, ``weights`` fp32."""

    token_ids: Tensor
    targets: Tensor
    weights: Tensor


def encode(tokenizer: Tokenizer, document: Document) -> tuple[list[int], list[float]]:
    """Return the tokens of ``document``, one end-of-text last, and their weights."""
    token_ids: list[int] = []
    weights: list[float] = []
    for turn in document.turns:
        prompt, completion = (
            tokenizer.encode(text).ids for text in (turn.prompt, turn.completion)
        )
        # A label decides as much in two tokens as a story in a hundred.
        weight = min(_MAX_WEIGHT, max(1.0, _FULL_LENGTH / len(completion)))
        token_ids += prompt + completion
        weights += [PROMPT_WEIGHT] * len(prompt) + [weight] * len(completion)
    if not document.text.endswith(END_OF_TEXT):
        token_ids += tokenizer.encode(END_OF_TEXT).ids
        weights.append(PROMPT_WEIGHT)
    return token_ids, weights


def pack(
    tokenizer: Tokenizer, documents: Iterable[Document], *, length: int
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield rows of ``length + 1`` tokens; each opens with a document, cuts the last."""
    row: list[int] = []
    weights: list[float] = []
    for document in documents:
        more_ids, more_weights = encode(tokenizer, document)
        row += more_ids
        weights += more_weights
        if len(row) > length:
            yield row[: length + 1], weights[: length + 1]
            row, weights = [], []


def make_batch(
    tokenizer: Tokenizer,
    *,
    seed: int,
    step: int,
    batch_size: int,
    length: int,
    copy_share: float,
    long_share: float,
    drill_share: float = 0.0,
) -> Batch:
    """Return the batch of ``step``, ``[batch_size, length]``."""
    # Steps stay far apart in seed space, so that two runs share no batch.
    documents = stream(
        seed * 1_000_000 + step,
        Split.TRAIN,
        copy_share=copy_share,
        long_share=long_share,
        drill_share=drill_share,
    )
    rows = pack(tokenizer, documents, length=length)
    token_ids = np.zeros((batch_size, length + 1), dtype=np.int64)
    weights = np.zeros((batch_size, length + 1), dtype=np.float32)
    for index in range(batch_size):
        token_ids[index], weights[index] = next(rows)
    return Batch(
        torch.from_numpy(token_ids[:, :-1].copy()),
        torch.from_numpy(token_ids[:, 1:].copy()),
        torch.from_numpy(weights[:, 1:].copy()),
    )
