from __future__ import annotations

import numpy as np
import torch

from pie_trio.inference.gpu.upload import Uploader
from tests.inference.gpu.fake_runtime import FakeRuntime


def test_arrays_arrive_with_their_dtypes_and_shapes() -> None:
    arrays = {
        "ids": np.arange(3, dtype=np.int32),
        "none": np.empty(0, np.int32),
        "points": np.array([[0.5], [0.25]]),
        "bits": np.array([7], np.uint8),
        "rows": np.arange(4, dtype=np.int64),
        "scales": np.ones(2, np.float32),
    }
    tensors = Uploader(FakeRuntime(), 16).upload(arrays)
    for name, array in arrays.items():
        assert tensors[name].numpy().dtype == array.dtype
        assert tensors[name].tolist() == array.tolist()


def test_the_same_arrays_lie_at_the_same_addresses_of_a_graph() -> None:
    uploader = Uploader(FakeRuntime())
    memory = torch.zeros(256, dtype=torch.uint8)
    first = uploader.upload({"a": np.arange(3), "b": np.arange(2)}, memory)
    second = uploader.upload({"a": np.arange(3) + 5, "b": np.arange(7)}, memory)
    assert first["a"].tolist() == [5, 6, 7]
    assert first["b"].data_ptr() == second["b"].data_ptr()


def test_memory_is_written_over_only_after_its_copy_was_waited_for() -> None:
    runtime = FakeRuntime()
    uploader = Uploader(runtime)
    for number in range(4):
        uploader.upload({"a": np.array([number])})
    assert runtime.log == [
        *("wait 1", "record 1", "wait 2", "record 2"),
        *("wait 1", "record 1", "wait 2", "record 2"),
    ]
