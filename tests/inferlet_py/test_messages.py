"""Messages and the log, natively; in Wasm in tests/application/run/test_contexts.py."""

from __future__ import annotations

import json
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
        self.logged: list[tuple[str, str, str]] = []

    def send(self, text: str) -> int | None:
        self.sent.append(text)
        return None

    def log(self, level: str, text: str, fields: str) -> None:
        self.logged.append((level, text, fields))


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
    assert host.logged == [("error", "x", "")]


def test_fields_follow_a_text_as_json_on_one_line(host: RecordingHost) -> None:
    log("x\ud800", n=1, what=len, word="a\nb\u2028c\ud800")
    ((_, text, fields),) = host.logged
    assert text == "x?"
    assert len(fields.splitlines()) == 1
    found = json.loads(fields)
    assert (found["n"], found["word"]) == (1, "a\nb\u2028c\ud800")
    assert "len" in found["what"]
