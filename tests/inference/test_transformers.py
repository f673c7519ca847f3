"""Random models against transformers, where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from pie_trio.engine_api import Batch
from pie_trio.inference.engine import open_engine
from tests.inference.contexts import Context

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.inference.kernels.choosing import KernelsName

transformers: Any = pytest.importorskip(
    "transformers",
    reason="transformers is not installed: the golden files stand in for it",
)


@pytest.mark.parametrize("name", ["tiny_llama", "untied_llama"])
def test_the_logits_are_those_of_transformers(
    request: pytest.FixtureRequest, name: str, kernels_name: KernelsName
) -> None:
    directory: Path = request.getfixturevalue(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32
    )
    token_ids = [256, *b"Once upon a time"]
    with torch.inference_mode():
        expected = model(torch.tensor([token_ids])).logits[0].numpy()
    engine = open_engine(
        directory, name="m", num_pages=2, num_threads=1, kernels=kernels_name
    ).engine
    request_ = Context([0, 1]).feed(token_ids, rows=range(len(token_ids)))
    found = engine.forward_logits(Batch((request_,)))
    np.testing.assert_allclose(found, expected, atol=1e-4)
