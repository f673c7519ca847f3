"""The file of a recording: whole, or refused with what is wrong with it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pie_trio.application.recording import files
from pie_trio.application.recording.files import Header, RecordingError, read
from pie_trio.application.recording.player import (
    DivergedError,
    Player,
    RecordingEndedError,
)
from pie_trio.application.recording.recorder import Recorder
from pie_trio.application.recording.taps import RANDOM
from pie_trio.errors import ConfigError, TimedOutError, UnknownHandleError

if TYPE_CHECKING:
    from pathlib import Path

HEADER = Header("app.py", "0" * 64, "wasm", ["pie-tiny"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.pie"


def make_recorder(path: Path) -> Recorder:
    recorder = Recorder()
    recorder.open(path, HEADER)
    recorder.begin("store.get", ["k"])
    recorder.end("store.get", b"\0\xff")
    recorder.end(RANDOM, np.array([1, 2], np.uint8))
    recorder.begin("forward.forward", [1, np.array([2.5, np.nan], np.float32)])
    recorder.end("forward.forward", UnknownHandleError("queue", 1))
    return recorder


@pytest.fixture
def recording(path: Path) -> Path:
    make_recorder(path).finish({"answer": [1, 2.5, None, "é"]})
    return path


def play(player: Player) -> None:
    assert player.begin("store.get", ["k"])() == b"\0\xff"
    assert list(player.begin(RANDOM, [2])()) == [1, 2]
    answer = player.begin(
        "forward.forward", [1, np.array([2.5, np.nan], np.float32)], may_fail=True
    )
    with pytest.raises(Exception, match="queue 1 is not a handle") as error:
        answer()
    assert getattr(error.value, "code", "") == UnknownHandleError.code


def test_calls_get_the_answers_that_were_recorded(recording: Path) -> None:
    player = Player(recording)
    play(player)
    player.finish({"answer": [1, 2.5, None, "é"]})
    assert player.header.models == ["pie-tiny"]


@pytest.mark.parametrize(
    ("envelope", "sent"),
    [(None, "a\u00fc"), (('{"text": ', "}"), b'{"text": "a\\u00fc"}')],
)
@pytest.mark.parametrize("is_ended", [False, True])
def test_what_the_host_relayed_is_sent_again_at_the_end(
    path: Path, envelope: object, sent: str | bytes, is_ended: bool
) -> None:
    """By the program's own account it has sent nothing."""
    calls: list[tuple[str, list[Any], Any]] = [
        ("decode.relay-stream", [4, envelope], 17),
        ("decode.end-relay", [4], ([1, 2], "a\u00fc", [], None, 2))
        if is_ended
        else ("decode.take-chunk", [17], ([1, 2], "a\u00fc", [], "length", 2)),
        ("decode.take-chunk", [18], ([3], "read", [], None, 3)),
    ]
    recorder = Recorder()
    recorder.open(path, HEADER)
    for name, arguments, answer in calls:
        recorder.begin(name, arguments)
        recorder.end(name, answer)
    recorder.finish(None)
    player = Player(path)
    for name, arguments, answer in calls:
        assert player.begin(name, arguments)() == answer
    player.finish(None)
    assert player.messages == [sent]


def test_another_result_is_a_divergence(recording: Path) -> None:
    player = Player(recording)
    play(player)
    with pytest.raises(DivergedError, match=r"call 3 .* now with .*'returned', 7"):
        player.finish(7)


def test_arguments_are_compared_bit_by_bit(recording: Path) -> None:
    player = Player(recording)
    player.begin("store.get", ["k"])
    with pytest.raises(DivergedError) as error:
        player.begin("forward.forward", [1, np.array([2.5, np.inf], np.float32)])
    assert error.value.number == 2


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        ("store.get", ["other"], r'recorded was store.get\("k"\), now comes .*"other"'),
        ("store.delete", ["k"], r'now comes store.delete\("k"\)'),
        (RANDOM, [3], "asks for 3 random bytes; recorded were 2"),
        ("wall-clock.now", [], "asks wall-clock.now once more"),
    ],
)
def test_what_is_asked_otherwise_is_named(
    recording: Path, name: str, arguments: list[object], match: str
) -> None:
    player = Player(recording)
    with pytest.raises(DivergedError, match=rf"^call 1 is not as recorded: .*{match}"):
        player.begin(name, arguments)


def test_a_program_that_swallows_the_divergence_is_not_answered_for_ever(
    recording: Path,
) -> None:
    player = Player(recording)

    def ask() -> None:
        for _ in range(2000):
            player.begin("store.get", ["x"], may_fail=True)

    with pytest.raises(DivergedError):
        ask()


def test_every_byte_counts(recording: Path) -> None:
    data = recording.read_bytes()
    read(recording)
    for index in range(0, len(data), 7):
        recording.write_bytes(
            data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]
        )
        with pytest.raises(RecordingError):
            read(recording)


def test_a_file_that_is_cut_short_is_refused(recording: Path) -> None:
    data = recording.read_bytes()
    for length in range(0, len(data), 5):
        recording.write_bytes(data[:length])
        with pytest.raises(RecordingError, match=r"cut short|is no recording"):
            read(recording)


def test_a_file_of_another_format_is_refused_with_both_numbers(recording: Path) -> None:
    first, *rest = recording.read_text().splitlines()
    header = {**json.loads(first), "format": 99}
    recording.write_text("\n".join([json.dumps(header), *rest]))
    with pytest.raises(RecordingError, match=r"format 99, and this Pie .* format 2"):
        read(recording)


def test_another_version_of_pie_is_named_where_a_call_diverges(path: Path) -> None:
    recorder = Recorder()
    recorder.open(path, Header("app.py", "0" * 64, "wasm", (), "0.0.1"))
    recorder.finish(None)
    player = Player(path)
    with pytest.raises(DivergedError, match=r"recorded by Pie 0\.0\.1"):
        player.begin("store.get", ["k"])


def test_a_run_that_was_ended_from_outside_replays_up_to_there(path: Path) -> None:
    recorder = make_recorder(path)
    recorder.begin("store.get", ["slow"])
    recorder.fail(TimedOutError("the program ran for 1 s, which is its limit"))
    player = Player(path)
    play(player)
    with pytest.raises(RecordingEndedError, match=r"up to call 2; .* TimedOutError"):
        player.begin("store.get", ["slow"])
    with pytest.raises(RecordingEndedError):
        player.finish(None)


def test_a_recording_that_grows_too_large_ends_and_can_be_used(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = make_recorder(path)
    monkeypatch.setattr(recorder._file, "_max_bytes", 3 << 10)
    for number in range(100):
        recorder.begin("store.get", [str(number)])
        recorder.end("store.get", b"x" * 100)
    recorder.finish("done")
    assert recorder.trouble is not None
    assert "which is the most" in recorder.trouble
    assert path.stat().st_size < 4 << 10
    player = Player(path)
    play(player)

    def ask() -> None:
        for number in range(100):
            player.begin("store.get", [str(number)])

    with pytest.raises(RecordingEndedError, match="the recording has reached"):
        ask()
    assert player.num_calls > 5


def test_a_disk_that_is_full_ends_the_recording_and_not_the_run() -> None:
    from pathlib import Path

    recorder = Recorder()
    recorder.open(Path("/dev/full"), HEADER)
    for _ in range(1000):
        recorder.begin("store.get", ["k"])
        recorder.end("store.get", b"x" * 100)
    recorder.finish(None)
    assert recorder.trouble == "cannot write /dev/full: No space left on device"


def test_a_path_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: No such file"):
        Recorder().open(tmp_path / "no" / "file.pie", HEADER)


def test_what_is_too_large_to_be_a_recording_is_not_read(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    monkeypatch.setattr(files, "ROOM_FOR_END", 10)
    with pytest.raises(RecordingError, match="more than"):
        read(recording)
