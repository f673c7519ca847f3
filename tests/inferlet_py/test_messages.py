"""Messages and the log, natively; in Wasm in tests/application/run/test_contexts.py."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from inferlet_py import log, send
from inferlet_py._host import Host, connect

if TYPE_CHECKING:
    from collections.abc import Generator


class RecordingHost:
    """Has room for every message, and remembers what it got."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.logged: list[tuple[str, str]] = []

    def send(self, text: str) -> int | None:
        self.sent.append(text)
        return None

    def log(self, level: str, text: str) -> None:
        self.logged.append((level, text))


@pytest.fixture
def host() -> Generator[RecordingHost]:
    host = RecordingHost()
    connect(cast("Host", host))
    yield host
    connect(None)


async def test_a_lone_surrogate_is_replaced(host: RecordingHost) -> None:
    await send("a\ud800b\N{SNOWMAN}")
    assert host.sent == ["a?b\N{SNOWMAN}"]


def test_a_level_that_does_not_exist_is_refused(host: RecordingHost) -> None:
    level: Any = "bad"
    with pytest.raises(ValueError, match="one of debug, info, warning, error"):
        log("x", level=level)
    log("x", level="error")
    assert host.logged == [("error", "x")]
