"""Which part of a model is whose."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pie_trio.errors import ConfigError
from pie_trio.inference.engine import open_engine
from pie_trio.inference.model_directory import read_model_directory
from pie_trio.inference.models.loading import load_decoder
from pie_trio.inference.parallel.following import Follower
from pie_trio.inference.parallel.group import Group
from pie_trio.inference.parallel.split import Split, check_split
from pie_trio.inference.weights import Checkpoint, open_checkpoint
from tests.model_factory import LlamaShape, write_llama_directory, write_model_directory
from tests.model_families import VARIANTS

if TYPE_CHECKING:
    from pathlib import Path


def test_ranks_have_all_of_each_block_together_and_nothing_twice() -> None:
    numbers = list(range(24))
    found = [
        [numbers[part] for part in Split(rank, 4).rows((8, 4, 12))] for rank in range(4)
    ]
    assert found[0] == [[0, 1], [8], [12, 13, 14]]
    assert found[3] == [[6, 7], [11], [21, 22, 23]]
    assert sorted(n for rank in found for block in rank for n in block) == numbers


@pytest.mark.parametrize(("vocab_size", "size"), [(258, 2), (257, 2), (10, 3), (5, 4)])
def test_the_vocabulary_is_shared_whatever_its_size(vocab_size: int, size: int) -> None:
    parts = [Split(rank, size).vocabulary(vocab_size) for rank in range(size)]
    tokens = range(vocab_size)
    assert [t for part in parts for t in tokens[part]] == list(tokens)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (2, None),
        (4, r"attention heads \(6\), KV heads \(2\); choose 1 or 2$"),
        (3, r"KV heads \(2\), intermediate size \(40\); choose 1 or 2$"),
    ],
)
def test_what_does_not_divide_is_refused_with_its_numbers(
    tiny_llama: Path, size: int, said: str | None
) -> None:
    config = read_model_directory(tiny_llama).config
    if said is None:
        check_split(config, size)
        return
    with pytest.raises(ConfigError, match=said):
        open_engine(tiny_llama, name="m", num_pages=1, part=Follower(1, size))


def test_experts_are_shared_by_their_own_size(tmp_path: Path) -> None:
    path = write_model_directory(tmp_path, "qwen3-moe")
    config = read_model_directory(path).config
    check_split(config, 2)
    assert config.experts is not None
    odd = replace(config, experts=replace(config.experts, intermediate_size=15))
    with pytest.raises(ConfigError, match=r"of an expert \(15\); choose 1$"):
        check_split(odd, 2)
    # Nothing reads the size of an MLP that no layer has.
    layers = tuple(replace(layer, is_sparse=True) for layer in config.layers)
    check_split(replace(config, layers=layers, intermediate_size=41), 2)


class CountingFile:
    """A file of tensors that counts the numbers read from it."""

    def __init__(self, file: Any, counts: dict[str, int]) -> None:
        self._file, self._counts = file, counts

    def get_tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(name)
        self._counts[name] = self._counts.get(name, 0) + tensor.numel()
        return tensor

    def get_slice(self, name: str) -> CountingPiece:
        return CountingPiece(self._file.get_slice(name), name, self._counts)


class CountingPiece:
    """One tensor of it."""

    def __init__(self, piece: Any, name: str, counts: dict[str, int]) -> None:
        self._piece, self._name, self._counts = piece, name, counts
        self.get_shape, self.get_dtype = piece.get_shape, piece.get_dtype

    def __getitem__(self, index: Any) -> torch.Tensor:
        tensor: torch.Tensor = self._piece[index]
        self._counts[self._name] = self._counts.get(self._name, 0) + tensor.numel()
        return tensor


def read_counts(path: Path, split: Split) -> dict[str, int]:
    """Return how many numbers of each tensor one rank reads."""
    config = read_model_directory(path).config
    counts: dict[str, int] = {}
    with open_checkpoint(path) as checkpoint:
        names = checkpoint._files
        files = {name: CountingFile(file, counts) for name, file in names.items()}
        group = Group(split) if split.size > 1 else None
        load_decoder(config, Checkpoint(path, files), torch.float32, group=group)
    return counts


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_rank_reads_its_part_and_what_all_need(
    variant: str, tmp_path: Path
) -> None:
    path = write_model_directory(tmp_path, variant)
    whole = read_counts(path, Split(0, 1))
    parts = [read_counts(path, Split(rank, 2)) for rank in range(2)]
    for name, count in whole.items():
        is_everywhere = (
            "norm" in name
            or "embed" in name
            or name.endswith((".gate.weight", "o_proj.bias", "down_proj.bias"))
        )
        expected = count if is_everywhere else count // 2
        assert [part[name] for part in parts] == [expected] * 2, name


def test_parts_of_tensors_in_another_dtype_are_converted(tmp_path: Path) -> None:
    shape = LlamaShape(is_tied=False)
    path = write_llama_directory(tmp_path, shape, dtype=torch.bfloat16, num_shards=2)
    config = read_model_directory(path).config
    with open_checkpoint(path) as checkpoint:
        model = load_decoder(
            config, checkpoint, torch.float32, group=Group(Split(1, 2))
        )
    assert model.config.num_heads == 3
    assert model.head.weight.shape == (129, 24)
    assert model.head.weight.dtype == torch.float32
    assert model.layers[0].qkv.weight.shape == ((3 + 2 * 1) * 8, 24)
    assert model.layers[0].attention_output.weight.shape == (24, 24)
    assert model.layers[0].attention_output.weight.is_contiguous()
