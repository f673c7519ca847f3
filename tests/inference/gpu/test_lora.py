"""Adapters by two kernels against those of torch, over the same tables.

Triton's kernels run in its interpreter where Triton is installed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pie_trio.inference.adapters.lowrank import AdaptedLinear, Adapter, LowRank, Part
from pie_trio.inference.engine import open_engine
from pie_trio.inference.gpu.lora import (
    AdapterPlans,
    GroupedLinear,
    LinearTables,
    Tiles,
    find_lora,
)
from pie_trio.inference.models.ops import Linear
from pie_trio.inference.paging.tiles import tile_rows
from tests.adapter_factory import ALL, ATTENTION, write_adapter
from tests.inference.contexts import Context, page_lists, run
from tests.inference.gpu.fakes import fake_kernels, open_fake
from tests.inference.gpu.plain_lora import PlainLora
from tests.model_factory import write_llama_directory

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.gpu.lora import LoraKernels


@pytest.fixture(scope="module", params=["numpy", "triton"])
def kernels(request: pytest.FixtureRequest) -> LoraKernels:
    """The kernels of Triton, and what stands for them where it is not installed."""
    if request.param == "numpy":
        return PlainLora()
    # Read when a kernel is made, so before the import.
    os.environ["TRITON_INTERPRET"] = "1"
    pytest.importorskip("triton", reason="Triton is not installed")
    from pie_trio.inference.gpu.lora_kernels import TritonLora

    return TritonLora()


@given(
    st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 9)), min_size=1, max_size=8),
    st.integers(1, 5),
)
def test_tiles_hold_every_row_with_an_adapter_once(
    requests: list[tuple[int, int]], max_size: int
) -> None:
    numbers = sorted({owner for owner, _ in requests if owner >= 0})
    owners = [numbers.index(owner) if owner >= 0 else -1 for owner, _ in requests]
    lengths = np.array([length for _, length in requests], np.int32)
    tiles = tile_rows(owners, lengths, max_size)
    of_row = np.array(owners).repeat(lengths).tolist()
    found: list[int] = []
    for start, size, owner in zip(
        tiles.starts, tiles.sizes, tiles.adapters, strict=True
    ):
        assert 1 <= size <= max_size
        rows = tiles.order[start : start + size].tolist()
        assert {of_row[row] for row in rows} == {owner}
        found += rows
    assert sorted(found) == [row for row, owner in enumerate(of_row) if owner >= 0]
    assert found == tiles.order.tolist()
    # No more tiles than are needed.
    counts = [of_row.count(owner) for owner in range(len(numbers))]
    assert len(tiles.sizes) == sum(-(-count // max_size) for count in counts)
    for array in (tiles.order, tiles.starts, tiles.sizes, tiles.adapters):
        assert array.dtype == np.int32


def low_rank(
    rng: torch.Generator, num_inputs: int, parts: list[tuple[int, int, int]]
) -> LowRank:
    """Return random factors; a part is its rank, its first output, and its outputs."""
    made: list[Part] = []
    first = 0
    for rank, start, num_outputs in parts:
        up = Linear(torch.randn(num_outputs, rank, generator=rng))
        made.append(Part(first, rank, start, up))
        first += rank
    down = torch.randn(first, num_inputs, generator=rng) * num_inputs**-0.5
    return LowRank(Linear(down), tuple(made))


@pytest.mark.parametrize("num_inputs", [8, 70])
@pytest.mark.parametrize("query_lens", [[1], [1, 1, 1, 1], [40, 3, 1, 18, 1]])
def test_products_are_those_of_torch(
    kernels: LoraKernels, num_inputs: int, query_lens: list[int]
) -> None:
    """Ranks and sizes that fill no block, parts in any place, an adapter without this layer."""
    rng = torch.Generator().manual_seed(0)
    factors = [
        low_rank(rng, num_inputs, [(3, 0, 70), (17, 70, 5), (1, 80, 20)]),
        low_rank(rng, num_inputs, [(16, 70, 10)]),
        None,
    ]
    adapters = {
        name: Adapter(({} if f is None else {"qkv": f},))
        for name, f in zip("abc", factors, strict=True)
    }
    names = ["b", "a", "", "c", "a"][: len(query_lens)]
    used = {name: adapters[name] for name in names if name}
    lengths = np.array(query_lens, np.int32)
    grouped = AdapterPlans(kernels).prepare(names, lengths, used)
    tensors = {n: torch.from_numpy(a) for n, a in grouped.arrays.items()}
    base = Linear(torch.randn(100, num_inputs, generator=rng))
    tiles = Tiles(
        *(tensors[f"lora_{n}"] for n in ("order", "starts", "sizes", "adapters"))
    )
    tables = LinearTables(
        tensors["lora_pointers"][0], tensors["lora_numbers"][0], 21, 3, 70
    )
    inputs = torch.randn(int(lengths.sum()), num_inputs, generator=rng)
    found = GroupedLinear(base, kernels, tables, tiles)(inputs)
    of_row = np.array(names).repeat(query_lens)
    added = [
        (f, torch.from_numpy(np.flatnonzero(of_row == name)))
        for name, f in zip("abc", factors, strict=True)
        if f is not None
    ]
    expected = AdaptedLinear(base, tuple(added))(inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - base(inputs)).abs().max() > 0.1


def test_a_batch_of_several_adapters_gives_the_tokens_of_the_cpu(
    tmp_path: Path, kernels: LoraKernels
) -> None:
    """Different ranks, different layers, rows without an adapter, prefill and decode."""
    directory = write_llama_directory(tmp_path / "model")
    adapters = {
        "all": write_adapter(tmp_path / "all", directory, ALL, seed=1),
        "some": write_adapter(tmp_path / "some", directory, ATTENTION[:2], rank=5),
        "odd": write_adapter(tmp_path / "odd", directory, ("down_proj",), rank=1),
    }
    found: list[list[list[int]]] = []
    for engine in (
        open_fake(
            directory, num_pages=60, page_size=4, kernels=fake_kernels(lora=kernels)
        ),
        open_engine(
            directory, name="m", num_pages=60, page_size=4, num_threads=1
        ).engine,
    ):
        for name, path in adapters.items():
            engine.load_adapter(name, path)
        names = ["all", "", "some", "odd", "all"]
        contexts = [Context(p) for p in page_lists(5, 10)]
        fed = [[256, 65, 9], [3], [7] * 20, [8, 9], [2]]
        tokens: list[list[int]] = []
        for _ in range(3):
            parts = zip(contexts, fed, names, strict=True)
            last = run(engine, *(c.feed(t, adapter=a) for c, t, a in parts))
            tokens.append(last)
            fed = [[token] for token in last]
        # One alone, and one that was loaded again with other weights under another name.
        tokens.append(run(engine, contexts[0].feed([5], adapter="odd")))
        found.append(tokens)
    assert found[0] == found[1]


def test_an_adapter_that_took_the_place_of_another_is_read_anew(
    tmp_path: Path,
) -> None:
    kernels = PlainLora()
    plans = AdapterPlans(kernels)
    rng = torch.Generator().manual_seed(1)
    lengths = np.ones(1, np.int32)
    seen: list[int] = []
    for _ in range(2):
        adapter = Adapter(({"down": low_rank(rng, 4, [(2, 0, 4)])},))
        grouped = plans.prepare(["x"], lengths, {"x": adapter})
        again = plans.prepare(["x"], lengths, {"x": adapter})
        pointers = grouped.arrays["lora_pointers"]
        assert pointers.tolist() == again.arrays["lora_pointers"].tolist()
        place = adapter.layers[0]["down"].down.weight.data_ptr()
        assert place in pointers
        seen.append(place)
    assert seen[0] != seen[1]


def test_without_a_gpu_torch_computes_adapters() -> None:
    assert find_lora(torch.device("cpu")) is None
