from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.engines.process import engine_environment
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.inference.engine import open_engine
from pie_trio.inference.fake import FakeEngine
from pie_trio.inference.kernels.library import find_library
from tests.inference.gpu.fakes import fake_kernels
from tests.inference.parallel.ranks import open_ranks
from tests.model_factory import LlamaShape, write_llama_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from pie_trio.inference.engine import LoadedModel, TorchEngine
    from pie_trio.inference.kernels.choosing import KernelsName
    from pie_trio.inference.parallel.part import Part

GOLDEN_MODELS = ("stories260K", "TinyStories-656K")

PAGE_SIZE, NUM_PAGES, NUM_EMBEDS = 4, 64, 16

# With more threads than free cores a step of these models takes 100 times longer.
NUM_THREADS = 1


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random model; do not change it."""
    return write_llama_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def untied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As tiny_llama, but with a head of its own, one KV head, and another rope_theta."""
    shape = LlamaShape(
        num_heads=4, num_kv_heads=1, head_dim=12, rope_theta=500.0, is_tied=False
    )
    path = tmp_path_factory.mktemp("models") / "untied"
    return write_llama_directory(path, shape, seed=1)


@pytest.fixture(scope="session", params=["torch", "native"])
def kernels_name(request: pytest.FixtureRequest) -> KernelsName:
    """Both implementations of the kernels; skips where there is no library."""
    if request.param == "torch":
        return "torch"
    if isinstance(library := find_library(), str):
        pytest.skip(f"no native kernels: {library}")
    return "native"


@pytest.fixture
def tiny_model(tiny_llama: Path, kernels_name: KernelsName) -> Iterator[LoadedModel]:
    """The random model with 64 pages of 4 tokens."""
    model = open_engine(
        tiny_llama,
        name="tiny",
        num_pages=64,
        page_size=4,
        num_threads=NUM_THREADS,
        kernels=kernels_name,
    )
    yield model
    model.engine.close()


class FakeInProcess(RemoteEngine):
    """A fake in a process of its own, with the fake's tool for tests."""

    def __init__(self) -> None:
        opener = partial(
            FakeEngine, num_pages=NUM_PAGES, page_size=PAGE_SIZE, num_embeds=NUM_EMBEDS
        )
        super().__init__("fake", opener, engine_environment(NUM_THREADS))

    def store_tokens(
        self, slots: NDArray[np.int32], token_ids: NDArray[np.int32]
    ) -> None:
        """See :meth:`FakeEngine.store_tokens`."""
        self._call("store_tokens", slots, token_ids)


ENGINES = (
    *("fake", "process", "torch", "torch-untied", "native", "native-untied"),
    *("flashinfer", "flashinfer-untied"),  # over a fake of the library
    # Two, as threads: to connect them takes 0.2 s each time, and what is special about them is in
    # tests/inference/parallel.
    pytest.param("ranks", marks=pytest.mark.slow),
    pytest.param("flashinfer-ranks", marks=pytest.mark.slow),
)


@pytest.fixture(params=ENGINES)
def engine(
    request: pytest.FixtureRequest, tiny_llama: Path, untied_llama: Path
) -> Iterator[FakeEngine | TorchEngine | FakeInProcess]:
    """What the contract suites run over."""
    if request.param == "process":
        remote = FakeInProcess()
        yield remote
        remote.close()
        return
    if request.param == "fake":
        yield FakeEngine(
            num_pages=NUM_PAGES, page_size=PAGE_SIZE, num_embeds=NUM_EMBEDS
        )
        return
    kernels, _, kind = str(request.param).partition("-")
    if kernels == "native" and isinstance(library := find_library(), str):
        pytest.skip(f"no native kernels: {library}")
    chosen: KernelsName = "native" if kernels == "native" else "torch"

    def open_part(part: Part | None = None) -> TorchEngine:
        return open_engine(
            untied_llama if kind == "untied" else tiny_llama,
            name="real",
            num_pages=NUM_PAGES,
            page_size=PAGE_SIZE,
            num_embeds=NUM_EMBEDS,
            num_threads=NUM_THREADS,
            # Those of a GPU are one's own.
            kernels=fake_kernels() if kernels == "flashinfer" else chosen,
            part=part,
        ).engine

    opened = open_ranks(open_part, 2) if "ranks" in request.param else open_part()
    yield opened
    opened.close()


@pytest.fixture(scope="session", params=GOLDEN_MODELS)
def golden_directory(request: pytest.FixtureRequest, shared_directory: Path) -> Path:
    """A trained model with golden.json; skips where it is absent."""
    directory = shared_directory / "models" / str(request.param)
    if not directory.is_dir():
        pytest.skip(f"the model {request.param} is not in {shared_directory}")
    return directory
