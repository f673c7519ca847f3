"""Random batches as the control layer may send them, and naive answers about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from hypothesis import strategies as st

from pie_trio.engine_api import Batch, ForwardRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_PAGES = 32


@st.composite
def batches(draw: st.DrawFn, *, is_masked: bool = True) -> tuple[Batch, int]:
    """A batch of one to six forwards, and the page size. Beginnings may be shared."""
    page_size = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prefix = rng.permutation(NUM_PAGES)
    forwards: list[ForwardRequest] = []
    for _ in range(draw(st.integers(1, 6))):
        num_tokens = draw(st.sampled_from([1, 1, 1, 2, 7]))
        kv_len = num_tokens + draw(st.integers(0, 20))
        num_pages = -(-kv_len // page_size)
        shared = draw(st.integers(0, num_pages))
        rest = rng.integers(0, NUM_PAGES, num_pages - shared + rng.integers(0, 3))
        pages = np.concatenate((prefix[:shared], rest)).astype(np.int32)
        mask = None
        if is_masked and draw(st.booleans()):
            mask = np.tri(num_tokens, kv_len, kv_len - num_tokens, dtype=np.bool_)
            if draw(st.booleans()):
                mask = rng.random((num_tokens, kv_len)) < 0.5
                mask[:, rng.integers(0, kv_len)] = True
        token_ids, positions = rng.integers(0, 99, (2, num_tokens)).astype(np.int32)
        forwards.append(ForwardRequest(token_ids, positions, pages, kv_len, mask))
    return Batch(tuple(forwards)), page_size


def seen(forward: ForwardRequest, window: int | None = None) -> NDArray[np.bool_]:
    """Return ``[num_tokens, kv_len]``, what each new token attends to."""
    num_tokens, kv_len = len(forward.token_ids), forward.kv_len
    result = np.zeros((num_tokens, kv_len), np.bool_)
    for token in range(num_tokens):
        own = kv_len - num_tokens + token
        for slot in range(kv_len):
            is_seen = slot <= own if forward.mask is None else forward.mask[token, slot]
            result[token, slot] = is_seen and (window is None or own - slot < window)
    return result


def attend(
    query: NDArray[np.float64], keys: NDArray[np.float64], seen: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return attention over one head whose values are its keys, and sums of exponentials."""
    weights = np.where(seen, np.exp(query @ keys.T), 0.0)
    sums = weights.sum(axis=1)
    return weights @ keys / np.maximum(sums, 1e-300)[:, None], sums
