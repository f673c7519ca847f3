"""Traces of real services, made to fit a small machine."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from benchmarks._traces import MOONCAKE_BLOCK, Scale, read_trace
from benchmarks.traces import Stopwatch, end_tokens

if TYPE_CHECKING:
    from pathlib import Path

SCALE = Scale(count=3, per_second=1.0, length=0.5, max_prompt=1000, max_new=100)


def write_azure(folder: Path) -> Path:
    path = folder / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:47.6805900,396,109\n"
        "2023-11-16 18:15:50.6805900,3000,1000\n"
    )
    return path


def write_mooncake(folder: Path) -> Path:
    path = folder / "mooncake.jsonl"
    rows = [
        {"timestamp": 0, "input_length": 600, "output_length": 10, "hash_ids": [1, 2]},
        {"timestamp": 500, "input_length": 520, "output_length": 0, "hash_ids": [1, 3]},
        {"timestamp": 500, "input_length": 512, "output_length": 4, "hash_ids": [4]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_gaps_keep_their_proportions_at_another_rate(tmp_path: Path) -> None:
    path = write_azure(tmp_path)
    assert [request.at for request in read_trace(path, SCALE, seed=0)] == [
        0.0,
        0.75,
        3.0,
    ]
    twice = Scale(3, 2.0, 0.5, 1000, 100)
    assert [request.at for request in read_trace(path, twice, seed=0)] == [
        0.0,
        0.375,
        1.5,
    ]


def test_lengths_are_scaled_and_bounded(tmp_path: Path) -> None:
    requests = read_trace(write_azure(tmp_path), SCALE, seed=0)
    assert [len(request.prompt) for request in requests] == [187, 198, 1000]
    assert [request.num_new for request in requests] == [22, 54, 100]


def test_every_request_generates_a_token(tmp_path: Path) -> None:
    requests = read_trace(write_mooncake(tmp_path), SCALE, seed=0)
    assert [request.num_new for request in requests] == [5, 1, 2]


def test_prompts_of_mooncake_share_the_blocks_of_the_same_hash(tmp_path: Path) -> None:
    first, second, third = read_trace(write_mooncake(tmp_path), SCALE, seed=0)
    size = MOONCAKE_BLOCK // 2
    assert [len(r.prompt) for r in (first, second, third)] == [300, 260, size]
    assert first.prompt[:size] == second.prompt[:size]
    assert first.prompt[size:260] != second.prompt[size:]
    assert third.prompt != first.prompt[:size]


def test_another_seed_shares_nothing(tmp_path: Path) -> None:
    path = write_mooncake(tmp_path)
    ours, theirs = (read_trace(path, SCALE, seed=seed) for seed in (1, 2))
    assert ours[0].prompt[:10] != theirs[0].prompt[:10]
    assert ours == read_trace(path, SCALE, seed=1)


def test_all_at_once_stays_all_at_once(tmp_path: Path) -> None:
    path = tmp_path / "once.jsonl"
    row = {"timestamp": 7, "input_length": 8, "output_length": 8, "hash_ids": []}
    path.write_text(f"{json.dumps(row)}\n" * 3)
    assert [request.at for request in read_trace(path, SCALE, seed=0)] == [0.0] * 3


def test_a_trace_that_is_too_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has 3 requests, not 4"):
        read_trace(write_azure(tmp_path), Scale(4, 1.0, 0.5, 1000, 100), seed=0)


def test_a_request_with_too_few_tokens_is_an_error() -> None:
    watch = Stopwatch(3)
    watch.note()
    with pytest.raises(RuntimeError, match="2 tokens came, not 3"):
        watch.read(2)


def test_times_between_tokens_count_the_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 11.0, 11.7])
    monkeypatch.setattr("benchmarks.traces.time.perf_counter", lambda: next(clock))
    watch = Stopwatch(5)
    for _ in range(3):
        watch.note()
    times = watch.read(5)
    assert times.first == 0.5
    assert times.between == pytest.approx(1.2 / 4)


@pytest.mark.parametrize(
    ("ids", "found"), [(7, ["7"]), ([7, 8], ["7", "8"]), (None, [])]
)
def test_end_tokens_are_one_or_several(
    tmp_path: Path, ids: object, found: list[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert end_tokens(tmp_path) == found
