"""A failed call says which call it was, and with which queue, ticket and pages."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

import pytest

from inferlet_py import HostError, OutOfPagesError
from inferlet_py._binding import HostInterface, bind_interfaces


class FailureError(Exception):
    """As componentize-py's ``Err``."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.value = SimpleNamespace(code=SimpleNamespace(name=code), message="none")


class PagesHost(Protocol):
    def alloc_kvpage(self, queue: int, pages: list[int]) -> None: ...
    def mask_kvpage(self, queue: int, page: int, hidden: list[bool]) -> None: ...
    def take_forward(self, ticket: int) -> list[int]: ...
    def copy_kvpage(self, queue: int, source_page: int, target_page: int) -> int: ...
    def forward(
        self, queue: int, input_pages: list[int], output_pages: list[int]
    ) -> int: ...


def fail(*_: Any) -> None:
    raise FailureError("OUT_OF_PAGES")


@pytest.mark.parametrize(
    ("name", "args", "queue", "ticket", "pages"),
    [
        ("alloc_kvpage", (3, [7, 8]), 3, None, (7, 8)),
        ("mask_kvpage", (3, 7, [True]), 3, None, (7,)),
        ("take_forward", (5,), None, 5, ()),
        ("copy_kvpage", (3, 7, 8), 3, None, (7, 8)),
        ("forward", (3, [7], [8, 9]), 3, None, (7, 8, 9)),
    ],
)
def test_a_failure_names_what_it_concerns(
    name: str, args: Any, queue: int | None, ticket: int | None, pages: Any
) -> None:
    module = SimpleNamespace(**dict.fromkeys(PagesHost.__dict__, fail))
    interface = HostInterface("pages", PagesHost)
    host = bind_interfaces([interface], {"pages": module}, FailureError)
    with pytest.raises(OutOfPagesError, match="none") as caught:
        getattr(host, name)(*args)
    error: HostError = caught.value
    assert (error.call, error.queue, error.ticket, error.pages) == (
        *(name, queue, ticket, pages),
    )
    assert error.code == "out-of-pages"
