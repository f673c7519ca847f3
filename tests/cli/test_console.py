"""The terminal: what is printed, and what is dropped where nobody reads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from pie_trio.application.host.instance_log import LogLine
from pie_trio.application.run.console import LogPrinter, MessagePrinter
from pie_trio.errors import ConfigError


def test_lines_beyond_the_bound_are_dropped_and_counted() -> None:
    printer = LogPrinter(max_lines=2)
    for text in "abcd":
        printer.add(LogLine("stdout", text))
    assert printer.take() == b"a\nb\n(2 lines dropped)\n"
    printer.add(LogLine("info", "e"))
    assert printer.take() == b"[info] e\n"
    assert printer.take() == b""


def test_the_result_begins_a_line() -> None:
    out = io.StringIO()
    printer = MessagePrinter(out)
    printer.print_messages(["a", b"b"])
    printer.print_result('"é"')
    printer.print_result("null")
    assert out.getvalue() == "ab\né\n"


def test_what_is_no_text_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with path.open("w", encoding="ascii") as out:
        MessagePrinter(out).print_messages(["é\ud800\n"])
    assert path.read_bytes() == "é?\n".encode()


def test_a_full_disk_is_no_bug_of_pie() -> None:
    with Path("/dev/full").open("w") as out:
        printer = MessagePrinter(out)
        with pytest.raises(ConfigError, match="cannot write to stdout: No space"):
            printer.print_messages(["a"])
