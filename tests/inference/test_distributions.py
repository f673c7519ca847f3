from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.inference.distributions import entropies, logprobs

ROWS = st.lists(
    st.lists(st.floats(-60, 60, width=32), min_size=7, max_size=7),
    min_size=1,
    max_size=5,
)


@given(ROWS, st.integers(0, 6))
def test_the_numbers_are_those_of_torch(rows: list[list[float]], token: int) -> None:
    logits = np.array(rows, np.float32)
    exact = torch.tensor(rows, dtype=torch.float64).log_softmax(dim=1)
    found = logprobs(logits, np.full(len(rows), token, np.int32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact[:, token], rtol=1e-5, atol=1e-5)
    expected = -(exact.exp() * exact).sum(dim=1)
    assert entropies(logits).dtype == np.float32
    np.testing.assert_allclose(entropies(logits), expected, rtol=1e-5, atol=1e-5)


def test_impossible_tokens_count_nothing() -> None:
    logits = np.array([[0.0, -np.inf, 0.0], [5.0, -np.inf, -np.inf]], np.float32)
    assert entropies(logits).tolist() == pytest.approx([np.log(2), 0.0])
    token_ids = np.array([2, 0], np.int32)
    assert logprobs(logits, token_ids).tolist() == pytest.approx([-np.log(2), 0.0])
