"""Opens a model directory as an :class:`~pie_trio.engine_api.Engine` and its tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pie_trio.engine_api import ModelInfo
from pie_trio.errors import EngineError, ModelDirectoryError
from pie_trio.inference.backends.torch_cpu import plan_attention
from pie_trio.inference.kv_cache import allocate_kv_cache
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.model_directory import read_model_directory
from pie_trio.inference.models.llama import load_llama
from pie_trio.inference.outputs import make_results
from pie_trio.inference.tokenizer import HuggingFaceTokenizer, load_tokenizer
from pie_trio.inference.validation import check_shapes, check_values
from pie_trio.inference.weights import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.engine_api import Batch, ForwardResult
    from pie_trio.inference.kv_cache import KvCache
    from pie_trio.inference.metadata import BatchMetadata
    from pie_trio.inference.models.config import DecoderConfig
    from pie_trio.inference.models.llama import LlamaModel

__all__ = ["DtypeName", "LoadedModel", "TorchEngine", "open_engine", "resolve_dtype"]

DtypeName = Literal["float32", "bfloat16", "auto"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TRAITS = ("allocate", "forward", "input-text", "output-text", "tokenize")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to serve. The engine is to be closed by whoever opened it."""

    engine: TorchEngine
    tokenizer: HuggingFaceTokenizer


class TorchEngine:
    """Runs batches with torch on the CPU; one at a time, from any thread."""

    def __init__(
        self,
        info: ModelInfo,
        model: LlamaModel,
        kv_cache: KvCache,
        *,
        num_threads: int | None,
    ) -> None:
        self._info = info
        self._num_threads = num_threads
        self._loaded: tuple[LlamaModel, KvCache] | None = (model, kv_cache)

    @property
    def info(self) -> ModelInfo:
        """What the model is; constant."""
        return self._info

    def execute(self, batch: Batch) -> list[ForwardResult]:
        """Run one step: see :meth:`pie_trio.engine_api.Engine.execute`.

        Raises:
            EngineError: A request is impossible, the logits are not finite, or torch failed.
                Impossible requests are found before anything is written.
        """
        metadata, logits = self._step(batch)
        return make_results(batch, metadata, logits)

    def forward_logits(self, batch: Batch) -> NDArray[np.float32]:
        """Run one step but return the logits of all output rows; for tests and tools.

        Returns:
            ``[num_rows, vocab_size]`` float32, the rows of one request after the other's.

        Raises:
            EngineError: As :meth:`execute`.
        """
        return self._step(batch)[1]

    def close(self) -> None:
        """Give back weights and KV cache. Idempotent."""
        self._loaded = None

    def _step(self, batch: Batch) -> tuple[BatchMetadata, NDArray[np.float32]]:
        if self._loaded is None:
            raise EngineError(
                f"the engine of {self._info.name} is closed: open it again"
            )
        model, kv_cache = self._loaded
        check_shapes(batch, self._info)
        metadata = build_metadata(batch, self._info.page_size)
        check_values(metadata, self._info)
        # Both settings belong to the thread, and the caller may be another one each time.
        if self._num_threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self._num_threads)
        try:
            with torch.inference_mode():
                return metadata, _forward(batch, metadata, model, kv_cache)
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"torch failed in a batch: {error}") from error


def open_engine(
    directory: Path | str,
    *,
    name: str,
    num_pages: int,
    page_size: int = 16,
    dtype: DtypeName = "float32",
    num_threads: int | None = None,
) -> LoadedModel:
    """Load a model directory and allocate its KV cache.

    Args:
        directory: In the Hugging Face layout.
        name: Under which the server offers the model.
        num_pages: KV pages to allocate: see :func:`~.kv_cache.num_pages_in`.
        page_size: Tokens in a page.
        dtype: Of weights and KV cache; "auto" takes what ``config.json`` says.
        num_threads: Of torch's kernels; None leaves its own choice, which is one a core. Any
            other busy process then costs up to 8 ms a kernel: give fewer than the free cores,
            or set ``OMP_WAIT_POLICY=passive`` in the environment before torch is imported.

    Raises:
        ModelDirectoryError: The directory cannot be used.
        ConfigError: The KV cache cannot be allocated.
    """
    source = read_model_directory(directory)
    config = source.config
    torch_dtype = resolve_dtype(config, dtype)
    tokenizer = load_tokenizer(
        source.path / "tokenizer.json", vocab_size=config.vocab_size
    )
    with open_checkpoint(source.path) as checkpoint:
        model = load_llama(config, checkpoint, torch_dtype)
    kv_cache = allocate_kv_cache(
        config, num_pages=num_pages, page_size=page_size, dtype=torch_dtype
    )
    info = ModelInfo(
        name=name,
        architecture=config.architecture,
        traits=_TRAITS,
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=source.eos_token_ids,
        prompt_template=source.prompt_template,
        page_size=page_size,
        num_pages=num_pages,
    )
    return LoadedModel(
        TorchEngine(info, model, kv_cache, num_threads=num_threads), tokenizer
    )


def resolve_dtype(config: DecoderConfig, dtype: DtypeName) -> torch.dtype:
    """Return the dtype to compute in.

    Raises:
        ModelDirectoryError: It is "auto", but the directory names none that is supported.
    """
    name = config.stored_dtype if dtype == "auto" else dtype
    if name not in _DTYPES:
        raise ModelDirectoryError(
            f"the dtype 'auto' needs a torch_dtype of {' or '.join(_DTYPES)} in config.json, "
            f"but it is {name!r}: choose one of the two"
        )
    return _DTYPES[name]


def _forward(
    batch: Batch, metadata: BatchMetadata, model: LlamaModel, kv_cache: KvCache
) -> NDArray[np.float32]:
    kv_cache.copy(batch.copies)
    if not batch.forwards:
        return np.empty((0, model.config.vocab_size), np.float32)
    hidden = model.forward(
        torch.as_tensor(metadata.token_ids),
        torch.as_tensor(metadata.positions),
        plan_attention(batch, metadata, kv_cache),
    )
    return model.logits(hidden[torch.as_tensor(metadata.output_rows)]).numpy()
