"""Maps of pages: who holds what, in few bytes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.server.stats_pages import (
    FIRST_INSTANCE,
    FREE,
    KEPT,
    OTHERS,
    SHARED,
    encode_changes,
    encode_runs,
    hide_others,
    map_pages,
    shrink,
)
from pie_trio.control.pages import PagePool

ANN, BEN = FIRST_INSTANCE, FIRST_INSTANCE + 1

codes = st.lists(st.integers(0, 6), max_size=60)


def array(values: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


def test_a_page_shows_who_holds_it() -> None:
    pool = PagePool(num_pages=6, page_size=4)
    own, shared, kept, unwritten = (pool.allocate() for _ in range(4))
    pool.bind(np.array([own, shared, kept], np.intp))
    found = map_pages(pool, [(ANN, [own, own, shared, unwritten]), (BEN, [shared])])
    assert found.tolist() == [ANN, SHARED, KEPT, FREE, FREE, FREE]


def test_pages_of_others_are_not_told_apart() -> None:
    cells, per_cell = hide_others(array([FREE, ANN, BEN, SHARED, KEPT]), [ANN], 100)
    assert cells.tolist() == [FREE, ANN, OTHERS, SHARED, KEPT]
    assert per_cell == 1


def test_a_large_map_shows_what_most_pages_of_a_cell_are() -> None:
    cells, per_cell = shrink(array([ANN, FREE, ANN, BEN, BEN, BEN, FREE]), 3)
    assert per_cell == 3
    assert cells.tolist() == [ANN, BEN, FREE]


@given(codes, st.integers(1, 20))
def test_a_map_has_no_more_cells_than_asked_for(
    values: list[int], max_cells: int
) -> None:
    cells, per_cell = shrink(array(values), max_cells)
    assert len(cells) <= max_cells
    assert len(values) <= len(cells) * per_cell < len(values) + per_cell
    assert set(cells.tolist()) <= set(values)


@given(codes)
def test_runs_are_the_map(values: list[int]) -> None:
    runs = encode_runs(array(values))
    decoded = [
        code
        for count, code in zip(runs[::2], runs[1::2], strict=True)
        for _ in range(count)
    ]
    assert decoded == values
    assert all(a != b for a, b in zip(runs[1::2], runs[3::2], strict=False))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=60))
def test_changes_lead_from_one_map_to_the_next(pairs: list[tuple[int, int]]) -> None:
    before, after = [a for a, _ in pairs], [b for _, b in pairs]
    changes = encode_changes(array(before), array(after))
    patched, touched = list(before), 0
    for begin, count, code in zip(*(changes[i::3] for i in range(3)), strict=True):
        patched[begin : begin + count] = [code] * count
        touched += count
    assert patched == after
    assert touched == sum(a != b for a, b in pairs)
