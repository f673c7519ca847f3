"""Requests as they came to real services, scaled to a machine: Azure's and Mooncake's traces."""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from benchmarks.peers import make_prompts

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

__all__ = ["Request", "Scale", "read_trace"]

MOONCAKE_BLOCK = 512
"""Tokens that one of its hashes stands for."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request.

    Attributes:
        at: Seconds after the first.
        prompt: Token ids.
        num_new: Tokens to generate.
    """

    at: float
    prompt: list[int]
    num_new: int


@dataclass(frozen=True, slots=True)
class Scale:
    """How a trace is made to fit.

    Attributes:
        count: Requests from its beginning.
        per_second: Their mean rate; the gaps between them keep their proportions.
        length: Factor of all lengths.
        max_prompt: Most tokens of a prompt, which loses its end.
        max_new: Most tokens to generate.
    """

    count: int
    per_second: float
    length: float
    max_prompt: int
    max_new: int


@dataclass(frozen=True, slots=True)
class _Line:
    at: float
    num_prompt: int
    num_new: int
    blocks: Sequence[int] = ()


def read_trace(path: Path, scale: Scale, *, seed: int) -> list[Request]:
    """Return the first requests of a trace, scaled.

    Args:
        path: A CSV file of Azure's or a JSON Lines file of Mooncake's. The latter says which
            blocks of prompts are the same; Azure's prompts have nothing in common.
        scale: How to make it fit.
        seed: Of the tokens. Other seeds share nothing.

    Raises:
        ValueError: It has fewer requests.
    """
    read = _read_mooncake if path.suffix == ".jsonl" else _read_azure
    lines = read(path, scale.count)
    if len(lines) < scale.count:
        raise ValueError(f"{path} has {len(lines)} requests, not {scale.count}")
    seconds = lines[-1].at - lines[0].at
    stretch = scale.count / scale.per_second / seconds if seconds else 0.0
    rng = random.Random(seed)
    return [
        Request(
            (line.at - lines[0].at) * stretch,
            _make_prompt(line, scale, rng, seed),
            _scaled(line.num_new, scale.length, scale.max_new),
        )
        for line in lines
    ]


def _make_prompt(line: _Line, scale: Scale, rng: random.Random, seed: int) -> list[int]:
    length = _scaled(line.num_prompt, scale.length, scale.max_prompt)
    if not line.blocks:
        return make_prompts(1, length, rng)[0]
    size = max(round(MOONCAKE_BLOCK * scale.length), 1)
    tokens: list[int] = []
    for block in line.blocks:
        tokens += make_prompts(1, size, random.Random(f"{seed} {block}"))[0]
        if len(tokens) >= length:
            break
    return tokens[:length]


def _scaled(value: int, factor: float, most: int) -> int:
    return min(max(round(value * factor), 1), most)


def _read_azure(path: Path, count: int) -> list[_Line]:
    lines: list[_Line] = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if len(lines) == count:
                break
            when = datetime.fromisoformat(f"{row['TIMESTAMP'][:26]}+00:00")
            prompt, new = int(row["ContextTokens"]), int(row["GeneratedTokens"])
            lines.append(_Line(when.timestamp(), prompt, new))
    return lines


def _read_mooncake(path: Path, count: int) -> list[_Line]:
    lines: list[_Line] = []
    with path.open() as file:
        for text in file:
            if len(lines) == count:
                break
            row = json.loads(text)
            lines.append(
                _Line(
                    row["timestamp"] / 1000,
                    row["input_length"],
                    row["output_length"],
                    row["hash_ids"],
                )
            )
    return lines
