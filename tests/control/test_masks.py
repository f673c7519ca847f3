from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.masks import decode_mask, infer_mask
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def naive_mask(slots: list[int], positions: list[int]) -> list[list[bool]]:
    rows: list[list[bool]] = []
    for position in positions:
        row: list[bool] = []
        for slot in slots:
            row.append(0 <= slot <= position)  # noqa: PERF401 - as plain as can be
        rows.append(row)
    return rows


def encode(row: list[bool]) -> list[int]:
    """Return the lengths of the runs of a row, the first of them hidden."""
    runs = [(seen, len(list(group))) for seen, group in groupby(row)]
    first = [] if not row or not row[0] else [0]
    return [*first, *(length for _, length in runs)]


@given(
    st.lists(st.integers(-1, 6), max_size=8),
    st.lists(st.integers(0, 8), min_size=1, max_size=5),
    st.booleans(),
)
def test_a_token_sees_the_written_slots_with_a_position_up_to_its_own(
    earlier: list[int], positions: list[int], is_sorted: bool
) -> None:
    if is_sorted:  # the usual case, which chance rarely finds
        earlier, positions = sorted(earlier), sorted(set(positions))
    slots = [*earlier, *positions]
    expected = naive_mask(slots, positions)
    causal = np.tri(len(positions), len(slots), len(earlier), dtype=np.bool_).tolist()
    found = infer_mask(np.array(earlier, np.int32), np.array(positions, np.int32))
    assert (found is None) == (expected == causal)
    if found is not None:
        assert found.dtype == np.bool_
        assert found.tolist() == expected


@given(
    st.lists(st.integers(-1, 6), min_size=1, max_size=8),
    st.lists(st.integers(0, 8), min_size=1, max_size=5),
    st.data(),
)
def test_masked_slots_are_hidden_and_new_tokens_never_are(
    earlier: list[int], positions: list[int], data: st.DataObject
) -> None:
    size = len(earlier) + len(positions)
    hidden = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    before, new = np.array(earlier, np.int32), np.array(positions, np.int32)
    plain = infer_mask(before, new)
    found = infer_mask(before, new, np.array(hidden, np.bool_))
    if not any(hidden[: len(earlier)]):
        assert (found is None) == (plain is None)
        return
    assert found is not None
    expected = naive_mask([*earlier, *positions], positions)
    for row in expected:
        for slot in range(len(earlier)):
            row[slot] = row[slot] and not hidden[slot]
    assert found.tolist() == expected


@st.composite
def masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Return a mask in which each row sees something."""
    num_tokens, kv_len = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    row = st.lists(st.booleans(), min_size=kv_len, max_size=kv_len).filter(any)
    rows = draw(st.lists(row, min_size=num_tokens, max_size=num_tokens))
    return np.array(rows, np.bool_)


@given(masks())
def test_a_mask_survives_the_wire(mask: NDArray[np.bool_]) -> None:
    rows = [encode(row) for row in mask.tolist()]
    num_tokens, kv_len = mask.shape
    found = decode_mask(rows, num_tokens=num_tokens, kv_len=kv_len)
    np.testing.assert_array_equal(found, mask)


def test_what_a_row_leaves_out_is_hidden() -> None:
    mask = decode_mask([[1, 2]], num_tokens=1, kv_len=5)
    assert mask.tolist() == [[False, True, True, False, False]]


def test_empty_runs_are_fine() -> None:
    mask = decode_mask([[0, 1, 0, 1, 2, 0]], num_tokens=1, kv_len=4)
    assert mask.tolist() == [[True, True, False, False]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 1]], "expected 2, got 1"),
        ([[0, 1]] * 3, "expected 2, got 3"),
        ([[0, 1], [0, 5]], "row 1 of the mask is 5 slots long, but the context has 4"),
        ([[0, 2**32 - 1], [0, 1]], "row 0 of the mask is 4294967295 slots long"),
        ([[0, 1], []], "row 1 of the mask sees nothing"),
        ([[4], [0, 1]], "row 0 of the mask sees nothing"),
        ([[2, 0], [0, 1]], "row 0 of the mask sees nothing"),
    ],
    ids=["too few", "too many", "too long", "far too long", "empty", "hidden", "zero"],
)
def test_a_wrong_mask_is_refused(rows: list[list[int]], message: str) -> None:
    with pytest.raises(BadArgumentError, match=message):
        decode_mask(rows, num_tokens=2, kv_len=4)


@given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=6), max_size=4))
def test_no_rows_lead_to_another_error(rows: list[list[int]]) -> None:
    try:
        mask = decode_mask(rows, num_tokens=2, kv_len=4)
    except BadArgumentError:
        return
    assert mask.shape == (2, 4)
    assert mask.any(axis=1).all()
