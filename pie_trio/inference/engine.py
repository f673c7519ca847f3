"""Opens a model directory as an :class:`~pie_trio.engine_api.Engine` and its tokenizer."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from pie_trio.engine_api import ModelInfo, OutputSpec
from pie_trio.errors import EngineError, ModelDirectoryError
from pie_trio.inference.adapters.loading import load_adapter
from pie_trio.inference.adapters.lowrank import Adapter
from pie_trio.inference.adapters.table import (
    NO_ADAPTERS,
    AdapterTable,
    WithAdapters,
)
from pie_trio.inference.backends.torch_cpu import to_tensor
from pie_trio.inference.gpu.choosing import choose_gpu, open_gpu_step
from pie_trio.inference.gpu.kernels import FlashInferKernels
from pie_trio.inference.gpu.step import GpuStep
from pie_trio.inference.kernels.choosing import choose_kernels
from pie_trio.inference.kernels.preparing import Preparation
from pie_trio.inference.kv_cache import (
    allocate_embeds,
    kv_bytes_per_page,
)
from pie_trio.inference.metadata import build_metadata
from pie_trio.inference.model_directory import read_model_directory
from pie_trio.inference.models.loading import load_decoder
from pie_trio.inference.outputs import plan_outputs
from pie_trio.inference.parallel.split import WHOLE, check_split
from pie_trio.inference.pipeline import OnItsWay, Pipeline, can_follow
from pie_trio.inference.processors import (
    NOTHING,
    ProcessorTable,
    WithProcessors,
    grammar_vocabulary,
)
from pie_trio.inference.step import Done, StepInput, compute
from pie_trio.inference.tokenizer import HuggingFaceTokenizer, load_tokenizer
from pie_trio.inference.validation import (
    check_page_data,
    check_page_ids,
    check_shapes,
    check_values,
)
from pie_trio.inference.weights import open_checkpoint

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor

    from pie_trio.engine_api import Batch, BatchResult
    from pie_trio.inference.gpu.choosing import DeviceName
    from pie_trio.inference.kernels.choosing import KernelsName
    from pie_trio.inference.kernels.protocol import Kernels, PagedCache
    from pie_trio.inference.models.config import DecoderConfig
    from pie_trio.inference.models.decoder import Decoder
    from pie_trio.inference.parallel.part import Part
    from pie_trio.inference.step import Compute, Pending

__all__ = ["DtypeName", "LoadedModel", "TorchEngine", "open_engine", "resolve_dtype"]

DtypeName = Literal["float32", "bfloat16", "auto"]
QuantizeName = Literal["int8"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_TRAITS = ("adapters", "allocate", "forward", "input-text", "output-text", "tokenize")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to serve. The engine is to be closed by whoever opened it."""

    engine: TorchEngine
    tokenizer: HuggingFaceTokenizer


class TorchEngine(WithProcessors, WithAdapters[Adapter]):
    """Runs batches with torch; one at a time, from any thread."""

    def __init__(
        self,
        info: ModelInfo,
        model: Decoder,
        kv_cache: PagedCache,
        embeds: Tensor,
        *,
        processors: ProcessorTable,
        num_threads: int | None,
        compute: Compute = compute,
    ) -> None:
        """Take over what :func:`open_engine` loaded and allocated.

        Args:
            info: As the engine returns it.
            model: Its weights.
            kv_cache: Of ``info.num_pages`` pages.
            embeds: ``[num_embeds, hidden_size]`` of the model's dtype.
            processors: An empty table for its vocabulary.
            num_threads: Of torch's kernels; None leaves torch's own choice.
            compute: A step; another one on another device.
        """
        super().__init__(processors)
        self._adapters = AdapterTable[Adapter]()
        self._info, self._compute = info, compute
        self._num_threads = num_threads
        self._pipeline = Pipeline()
        self._loaded: tuple[Decoder, PagedCache, Tensor] | None = (
            model,
            kv_cache,
            embeds,
        )

    @property
    def info(self) -> ModelInfo:
        """What the model is; constant but for its adapters."""
        return self._info

    def execute(self, batch: Batch) -> BatchResult:
        """Run one step: see :meth:`pie_trio.engine_api.Engine.execute`.

        Raises:
            EngineError: A request is impossible, or torch failed. Impossible requests are
                found before anything is written.
        """
        if len(self._pipeline):
            raise EngineError("a step is on its way: collect it before another one")
        self._pipeline.forget()
        return self._finish(self._launch(batch))

    def submit(self, batch: Batch) -> None:
        """Ask for a step: see :meth:`pie_trio.engine_api.PipelinedEngine.submit`.

        Where a device computes that is not waited for; else the step is done on return.

        Raises:
            EngineError: As :meth:`execute`, or the batch has to wait for a step on its way.
        """
        self._pipeline.check(batch)
        self._pipeline.add(self._launch(batch))

    def collect(self) -> BatchResult:
        """Return the oldest step: see :meth:`pie_trio.engine_api.PipelinedEngine.collect`.

        Raises:
            EngineError: There is none, or torch failed.
        """
        return self._finish(self._pipeline.take())

    @property
    def is_pipelined(self) -> bool:
        """See :attr:`pie_trio.engine_api.PipelinedEngine.is_pipelined`."""
        return isinstance(self._compute, GpuStep)

    def can_follow(self, outputs: Sequence[OutputSpec]) -> bool:
        """See :meth:`pie_trio.engine_api.PipelinedEngine.can_follow`."""
        return isinstance(self._compute, GpuStep) and can_follow(outputs)

    def _launch(self, batch: Batch) -> OnItsWay:
        self._open()
        check_shapes(batch, self._info)
        metadata = build_metadata(batch, self._info.page_size)
        plan = plan_outputs(batch, metadata)
        check_values(metadata, plan, self._info)
        follows = self._pipeline.follows(batch, metadata)
        using = self._adapters.use(batch.forwards)
        if using is NO_ADAPTERS and not plan.has_processors:  # a stack costs some 5 us
            step = StepInput(batch, metadata, plan, follows=follows)
            return OnItsWay(batch, plan, self._start(step), None, NOTHING)
        with ExitStack() as stack:
            adapters = stack.enter_context(using)
            prepared = stack.enter_context(self._processors.prepare(plan))
            step = StepInput(batch, metadata, plan, prepared, adapters, follows)
            pending = self._start(step)
            return OnItsWay(batch, plan, pending, prepared, stack.pop_all())

    def _start(self, step: StepInput) -> Pending:
        model, kv_cache, embeds = self._open()
        with self._torch():
            kv_cache.copy(step.batch.copies)
            if isinstance(self._compute, GpuStep):
                return self._compute.launch(step, model, kv_cache, embeds)
            return Done(self._compute(step, model, kv_cache, embeds))

    def _finish(self, step: OnItsWay) -> BatchResult:
        if isinstance(step.pending, Done):
            return step.finish()
        with self._torch():
            return step.finish()

    def forward_logits(self, batch: Batch) -> NDArray[np.float32]:
        """Run one step but return the logits of all output rows; for tests and tools.

        Returns:
            ``[num_rows, vocab_size]`` float32, the rows of one request after the other's.

        Raises:
            EngineError: As :meth:`execute`, or a logit is not finite.
        """
        forwards = tuple(
            replace(
                f, outputs=tuple(OutputSpec(o.rows, logits=True) for o in f.outputs)
            )
            for f in batch.forwards
        )
        rows = [np.empty((0, self._info.vocab_size), np.float32)]
        for result in self.execute(replace(batch, forwards=forwards)).forwards:
            if isinstance(result, EngineError):
                raise result
            rows += [output.logits for output in result]
        return np.concatenate(rows)

    def store_tokens(
        self, slots: NDArray[np.int32], token_ids: NDArray[np.int32]
    ) -> None:
        """Store the embeddings of tokens as if they were hidden states; for tests and tools.

        An input slot that holds one acts as the token itself.
        """
        model, _, embeds = self._open()
        with self._torch():
            places, ids = (
                torch.as_tensor(x, device=embeds.device) for x in (slots, token_ids)
            )
            embeds[places] = model.embed(ids)

    def read_pages(self, page_ids: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the bytes of pages: see :meth:`pie_trio.engine_api.Engine.read_pages`.

        Raises:
            EngineError: There is no such page, or no memory for the copy.
        """
        model, kv_cache, _ = self._open()
        check_page_ids(page_ids, self._info)
        with self._torch():
            ids = torch.as_tensor(page_ids, device=model.kernels.device)
            return kv_cache.read(ids).cpu().numpy()

    def write_pages(self, page_ids: NDArray[np.int32], data: NDArray[np.uint8]) -> None:
        """Put pages back: see :meth:`pie_trio.engine_api.Engine.write_pages`.

        Raises:
            EngineError: There is no such page, one occurs twice, or the data do not fit.
        """
        model, kv_cache, _ = self._open()
        check_page_data(page_ids, data, self._info)
        device = model.kernels.device
        with self._torch():
            # A copy, for torch wants memory that is writable and aligned for the numbers.
            pages = to_tensor(np.array(data, order="C")).to(device)
            kv_cache.write(torch.as_tensor(page_ids, device=device).long(), pages)

    def read_adapter(self, directory: Path | str, digest: bytes) -> Adapter:
        """Return the weights of an adapter: see :meth:`load_adapter`.

        Raises:
            AdapterError: It is not for this model, or not supported.
        """
        model, _, _ = self._open()
        with self._torch():
            return load_adapter(directory, model)

    def close(self) -> None:
        """Give back weights and KV cache. Idempotent."""
        self._loaded = None
        self._processors.close()
        self._adapters.close()

    def _open(self) -> tuple[Decoder, PagedCache, Tensor]:
        if self._loaded is None:
            raise EngineError(
                f"the engine of {self._info.name} is closed: open it again"
            )
        return self._loaded

    @contextmanager
    def _torch(self) -> Generator[None]:
        """Prepare the caller's thread for torch, and turn its errors into ours."""
        # Both settings belong to the thread, and the caller may be another one each time.
        if self._num_threads not in (None, torch.get_num_threads()):
            torch.set_num_threads(self._num_threads)
        try:
            with torch.inference_mode():
                yield
        except (RuntimeError, MemoryError) as error:
            raise EngineError(f"torch failed in a batch: {error}") from error


def open_engine(
    directory: Path | str,
    *,
    name: str,
    num_pages: int,
    page_size: int = 16,
    dtype: DtypeName = "float32",
    num_embeds: int = 4096,
    num_threads: int | None = None,
    kernels: KernelsName | Kernels = "auto",
    quantize: QuantizeName | None = None,
    device: DeviceName = "cpu",
    part: Part | None = None,
) -> LoadedModel:
    """Load a model directory and allocate its KV cache.

    Args:
        directory: In the Hugging Face layout.
        name: Under which the server offers the model.
        num_pages: KV pages to allocate: see :func:`~.kv_cache.num_pages_in`.
        page_size: Tokens in a page.
        dtype: Of weights and KV cache; "auto" takes what ``config.json`` says.
        num_embeds: Places for hidden states to allocate.
        num_threads: Of torch's kernels; None leaves its own choice, which is one a core. Any
            other busy process then costs up to 8 ms a kernel: give fewer than the free cores,
            or set ``OMP_WAIT_POLICY=passive`` in the environment before torch is imported.
        kernels: Of the CPU: see :func:`~.kernels.choosing.choose_kernels`; or what to compute
            with, whatever the device.
        quantize: "int8" rounds the weights of linear layers, and what goes into them, to 8
            bits: faster, in half the memory, and with slightly different results.
        device: See :func:`~.gpu.choosing.choose_gpu`.
        part: The rank that this process is, where several have a part of the model each.

    Raises:
        ModelDirectoryError: The directory cannot be used.
        ConfigError: The ranks cannot share the model. The KV cache or the places for hidden states cannot be allocated, or the
            chosen kernels or 8 bits are not possible here.
    """
    source = read_model_directory(directory)
    config = source.config
    group = None if part is None else part.group
    split = WHOLE if group is None else group.split
    check_split(config, split.size)
    own = split.config(config)
    torch_dtype = resolve_dtype(config, dtype)
    is_int8 = quantize == "int8"
    chosen = _choose_kernels(kernels, device, own, torch_dtype, is_int8=is_int8)
    is_packed = not isinstance(chosen, FlashInferKernels)
    preparation = Preparation(chosen, is_packed=is_packed, is_int8=is_int8)
    tokenizer = load_tokenizer(
        source.path / "tokenizer.json", vocab_size=config.vocab_size
    )
    with open_checkpoint(source.path) as checkpoint:
        model = load_decoder(config, checkpoint, torch_dtype, preparation, group)
    kv_cache = preparation.kernels.allocate_kv_cache(
        own, num_pages=num_pages, page_size=page_size, dtype=torch_dtype
    )
    embeds = allocate_embeds(config, num_embeds=num_embeds, dtype=torch_dtype)
    embeds = preparation.place(embeds)
    processors = ProcessorTable(
        config.vocab_size,
        grammar_vocabulary(
            source.path / "tokenizer.json", config.vocab_size, source.eos_token_ids
        ),
    )
    info = ModelInfo(
        name=name,
        architecture=config.architecture,
        traits=(*_TRAITS, *processors.traits),
        vocab_size=config.vocab_size,
        max_positions=config.max_positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_ids=source.eos_token_ids,
        prompt_template=source.prompt_template,
        chat=source.chat,
        page_size=page_size,
        num_pages=num_pages,
        page_bytes=kv_bytes_per_page(own, page_size=page_size, dtype=torch_dtype),
        hidden_size=config.hidden_size,
        num_embeds=num_embeds,
    )
    make_engine = TorchEngine if part is None else part.make_engine
    engine = make_engine(
        info,
        model,
        kv_cache,
        embeds,
        processors=processors,
        num_threads=num_threads,
        compute=open_gpu_step(model, kv_cache) or compute,
    )
    return LoadedModel(engine, tokenizer)


def _choose_kernels(
    kernels: KernelsName | Kernels,
    device: DeviceName,
    config: DecoderConfig,
    dtype: torch.dtype,
    *,
    is_int8: bool,
) -> Kernels:
    if not isinstance(kernels, str):
        return kernels
    on_gpu = choose_gpu(device, config, dtype, is_int8=is_int8)
    if on_gpu is not None:
        return on_gpu
    return choose_kernels(kernels, head_dim=config.head_dim)


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
