from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.control.handles import HandleTable
from pie_trio.errors import BadArgumentError, LimitError, UnknownHandleError

HANDLES = st.integers(0, 5)


def make_table(*handles: int, max_handles: int = 4) -> HandleTable[str]:
    table: HandleTable[str] = HandleTable("page", max_handles=max_handles)
    for handle in handles:
        table.add(handle, f"page of {handle}")
    return table


def test_an_unknown_handle_is_named_in_the_error() -> None:
    with pytest.raises(UnknownHandleError, match="page 7 is not a handle") as caught:
        make_table(1).get(7)
    assert (caught.value.kind, caught.value.handle) == ("page", 7)


def test_a_removed_handle_is_unknown() -> None:
    table = make_table(1)
    assert table.remove(1) == "page of 1"
    for use in (table.get, table.remove):
        with pytest.raises(UnknownHandleError):
            use(1)


def test_a_handle_of_one_table_means_nothing_in_another() -> None:
    make_table(1)
    with pytest.raises(UnknownHandleError):
        make_table(2).get(1)


def test_a_handle_that_is_named_twice_or_in_use_is_refused() -> None:
    table = make_table(1)
    with pytest.raises(BadArgumentError, match="named twice"):
        table.check_unused([2, 2])
    with pytest.raises(BadArgumentError, match="page 1 is in use"):
        table.check_unused([2, 1])


def test_there_are_no_more_handles_than_the_limit() -> None:
    table = make_table(1, 2)
    table.check_unused([3, 4])
    with pytest.raises(LimitError, match=r"5 pages asked for, but .* may have 4"):
        table.check_unused([3, 4, 5])


def test_a_handle_can_stand_for_something_else() -> None:
    table = make_table(1)
    table.replace(1, "copy")
    assert table.get(1) == "copy"


def test_clearing_returns_everything() -> None:
    table = make_table(3, 1)
    assert table.clear() == ["page of 3", "page of 1"]
    assert len(table) == 0


@given(st.lists(HANDLES, max_size=4, unique=True), st.lists(HANDLES, max_size=6))
def test_a_check_refuses_exactly_what_cannot_be_added_and_changes_nothing(
    present: list[int], wanted: list[int]
) -> None:
    table = make_table(*present)
    is_fine = (
        len(set(wanted)) == len(wanted)
        and not set(wanted) & set(present)
        and len(present) + len(wanted) <= 4
    )
    if is_fine:
        table.check_unused(wanted)
    else:
        with pytest.raises((BadArgumentError, LimitError)):
            table.check_unused(wanted)
    assert list(table) == present
