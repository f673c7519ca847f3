from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pie_trio.application.host.instance_log import (
    MAX_LINE_BYTES,
    InstanceLog,
    LogLine,
)


def texts(log: InstanceLog) -> list[str]:
    return [line.text for line in log.lines]


def test_each_line_of_a_text_is_a_line_of_the_log() -> None:
    log = InstanceLog(max_bytes=100)
    log.write("info", "one\ntwo\n")
    log.write("error", "")
    assert list(log.lines) == [
        LogLine("info", "one"),
        LogLine("info", "two"),
        LogLine("error", ""),
    ]


def test_a_printed_line_counts_once_its_end_is_there() -> None:
    log = InstanceLog(max_bytes=100)
    for part in (b"o", b"ne\nt", b"wo", b"\n\nth"):
        log.write_output(1, part)
    assert list(log.lines) == [LogLine("stdout", text) for text in ("one", "two", "")]


def test_the_streams_do_not_mix_within_a_line() -> None:
    log = InstanceLog(max_bytes=100)
    log.write_output(1, b"out")
    log.write_output(2, b"error\n")
    log.write_output(1, b"put\n")
    assert list(log.lines) == [LogLine("stderr", "error"), LogLine("stdout", "output")]


def test_closing_appends_the_lines_that_have_no_end_once() -> None:
    log = InstanceLog(max_bytes=100)
    log.write_output(1, b"out")
    log.write_output(2, b"whole\nerr")
    for _ in range(2):
        log.close()
    assert texts(log) == ["whole", "out", "err"]


@given(
    st.lists(st.sampled_from([b"a", b"\n", "ü".encode(), b"long line"]), max_size=12),
    st.integers(1, 5),
)
def test_it_does_not_matter_how_a_text_is_cut(parts: list[bytes], size: int) -> None:
    whole, cut = InstanceLog(max_bytes=10_000), InstanceLog(max_bytes=10_000)
    text = b"".join(parts)
    whole.write_output(1, text)
    for start in range(0, len(text), size):
        cut.write_output(1, text[start : start + size])
    for log in (whole, cut):
        log.close()
    assert texts(cut) == texts(whole)
    assert "\n".join(texts(whole)) == text.decode().removesuffix("\n")


def test_what_is_no_utf_8_is_shown_as_such() -> None:
    log = InstanceLog(max_bytes=100)
    log.write_output(1, b"a\xff\n")
    assert texts(log) == ["a\N{REPLACEMENT CHARACTER}"]


def test_older_lines_go_first_and_are_counted() -> None:
    log = InstanceLog(max_bytes=2000)
    for number in range(500):
        log.write("info", f"line {number} of many that fill the log")
    kept = texts(log)
    assert kept[-1].startswith("line 499 ")
    assert 0 < sum(map(len, kept)) <= 2000
    assert log.num_dropped == 500 - len(kept)


def test_each_line_is_told_as_it_comes_dropped_or_not() -> None:
    told: list[LogLine] = []
    log = InstanceLog(max_bytes=1, on_line=told.append)
    log.write("info", "one")
    log.write_output(1, b"two\nthree")
    log.close()
    assert [line.text for line in told] == ["one", "two", "three"]
    assert texts(log) == ["three"]


def test_a_line_without_an_end_is_not_kept_for_ever() -> None:
    log = InstanceLog(max_bytes=1 << 20)
    for _ in range(3):
        log.write_output(1, b"x" * MAX_LINE_BYTES)
    assert len(log.lines) >= 1
    log.close()
    assert sum(map(len, texts(log))) == 3 * MAX_LINE_BYTES


def test_empty_lines_are_bounded_too() -> None:
    log = InstanceLog(max_bytes=10_000)
    log.write_output(1, b"\n" * 100_000)
    assert len(log.lines) <= 10_000


def test_a_single_line_is_bounded_too() -> None:
    log = InstanceLog(max_bytes=2 * MAX_LINE_BYTES)
    log.write_output(1, b"x" * (8 * MAX_LINE_BYTES) + b"\n")
    log.write("info", "x" * (8 * MAX_LINE_BYTES))
    assert sum(map(len, texts(log))) <= 2 * MAX_LINE_BYTES


def test_it_is_bytes_that_are_counted() -> None:
    log = InstanceLog(max_bytes=1000)
    for _ in range(900):
        log.write("info", "\N{GRINNING FACE}")
    assert sum(len(text.encode()) for text in texts(log)) <= 1000
