"""The device against readable torch in float32 on the CPU, on the same random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.gpu.models import RandomCheckpoint, open_random, read_shape
from pie_trio.application.run.setup import default_model
from pie_trio.engine_api import (
    Batch,
    ForwardRequest,
    OutputSpec,
    PageCopy,
    ProcessorSpec,
    SamplerSpec,
)
from pie_trio.errors import EngineError
from pie_trio.inference.adapters.targets import find_targets
from pie_trio.inference.engine import open_engine
from pie_trio.inference.gpu.step import GpuStep
from pie_trio.inference.paging.cascade import CascadeRule
from pie_trio.inference.processors.changes import change_logits
from pie_trio.inference.processors.processor import Processor
from pie_trio.inference.sampler import sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.gpu.parts import Row
    from pie_trio.engine_api import BatchResult
    from pie_trio.inference.engine import DtypeName, TorchEngine
    from pie_trio.inference.gpu.choosing import DeviceName

SEED = 5


def equivalence(device: DeviceName, *, is_small: bool) -> list[Row]:
    """Compare logits, and what is drawn from them.

    The weights are bfloat16 numbers in both engines, so that what differs is how it is computed.
    The bound of logits is that of rounding to bfloat16 a few dozen times. Draws are compared with
    those of the host from the device's own logits, so they have to be the same.
    """
    del is_small
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows: list[Row] = []
    for name in ("tiny-64", "tiny-128"):
        engines = [
            open_random(
                name,
                device=where,
                dtype=kind,
                num_pages=128,
                weights=_Rounded(torch.device("cpu"), SEED),
                kernels=kernels,
            )
            for where, kind, kernels in (
                (device, dtype, "auto"),
                ("cpu", torch.float32, "torch"),
            )
        ]
        rows += _compare_all(name, engines[0], engines[1], dtype)
        for engine in engines:
            engine.close()
    return [*rows, *_default_model(device)]


class _Rounded(RandomCheckpoint):
    def take(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, **parts: Any
    ) -> torch.Tensor:
        whole = super().take(name, shape, torch.float32, **parts)
        return whole.bfloat16().to(dtype)


def _compare_all(
    name: str, ours: TorchEngine, reference: TorchEngine, dtype: torch.dtype
) -> list[Row]:
    rows: list[Row] = []
    step = ours._compute
    with tempfile.TemporaryDirectory() as folder:
        for adapter in ("a", "b"):
            path = _write_adapter(Path(folder) / adapter, name, seed=ord(adapter))
            for engine in (ours, reference):
                engine.load_adapter(adapter, path)
    for case, batches in _cases().items():
        if isinstance(step, GpuStep):  # a beginning of one page is worth it here
            is_cascade = case == "common beginnings"
            step._kernels.cascade = CascadeRule(1, 1) if is_cascade else CascadeRule()
        found = [ours.forward_logits(batch) for batch in batches]
        expected = [reference.forward_logits(batch) for batch in batches]
        rows.append(_row(f"{name} {case}", found, expected, dtype))
    if isinstance(step, GpuStep):
        step.graphs.check()
        rows.append(_exact(f"{name} graphs against their kernels", 0, 1))
    return [
        *rows,
        _draws(f"{name} samplers", ours, ()),
        _draws(f"{name} masks", ours, (*range(3, 500, 7),)),
        _overlap(f"{name} tokens that stay on the device", ours),
    ]


def _row(
    what: str,
    found: Sequence[NDArray[np.float32]],
    expected: Sequence[NDArray[np.float32]],
    dtype: torch.dtype,
) -> Row:
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if len(b)]
    error = max(float(np.abs(a - b).max()) for a, b in pairs)
    spread = max(float(b.std()) for _, b in pairs)
    bound = (0.06 if dtype == torch.bfloat16 else 1e-4) * max(spread, 1e-3)
    return {
        "what": what,
        "value": error / max(spread, 1e-9),
        "unit": "of the deviation",
        "is_ok": error <= bound,
    }


def _exact(what: str, num_wrong: int, num_all: int) -> Row:
    return {
        "what": what,
        "value": num_wrong,
        "unit": f"of {num_all} differ",
        "is_ok": num_wrong == 0,
    }


def _draws(what: str, engine: TorchEngine, allowed: tuple[int, ...]) -> Row:
    """Draw from the same logits on the device and on the host."""
    specs = [
        SamplerSpec(),
        SamplerSpec(temperature=1.0, seed=1),
        SamplerSpec(temperature=0.7, top_k=20, seed=2),
        SamplerSpec(temperature=1.1, top_p=0.9, seed=3),
        SamplerSpec(temperature=1.0, min_p=0.02, seed=4),
        SamplerSpec(temperature=0.9, top_k=50, top_p=0.8, min_p=0.01, seed=5),
    ]
    spec = ProcessorSpec(allowed_tokens=allowed or None)
    processor = Processor(spec, vocab_size=engine.info.vocab_size, matcher=None)
    number = 1 if allowed else 0
    if allowed:
        engine.create_processor(number, spec)
    rng = np.random.default_rng(SEED)
    num_wrong = num_all = 0
    for _ in range(16):
        tokens = rng.integers(0, 500, (len(specs), 9)).astype(np.int32)
        forwards = [
            _forward(np.array([row], np.int32), row_tokens, SamplerSpec())
            for row, row_tokens in enumerate(tokens)
        ]
        logits = engine.forward_logits(Batch(tuple(forwards)))
        for forward, sampler in zip(forwards, specs, strict=True):
            row = np.array([8], np.int32)
            forward.outputs = (OutputSpec(row, sampler, processor=number),)
        found = _tokens(engine.execute(Batch(tuple(forwards))))
        change_logits(logits, [processor] * len(specs), None)
        expected = sample(logits, specs, np.full(len(specs), 8, np.int32))
        num_wrong += sum(a != b for a, b in zip(found, expected.tolist(), strict=True))
        num_all += len(specs)
    if allowed:
        engine.drop_processors([number])
    return _exact(what, num_wrong, num_all)


def _forward(
    pages: NDArray[np.int32], tokens: NDArray[np.int32], sampler: SamplerSpec
) -> ForwardRequest:
    last = np.array([len(tokens) - 1], np.int32)
    positions = np.arange(len(tokens), dtype=np.int32)
    outputs = (OutputSpec(last, sampler),)
    return ForwardRequest(tokens, positions, pages, len(tokens), outputs=outputs)


def _tokens(result: BatchResult) -> list[int]:
    found: list[int] = []
    for one in result.forwards:
        if isinstance(one, EngineError):
            raise one
        found.append(int(one[0].token_ids[0]))
    return found


def _overlap(what: str, engine: TorchEngine) -> Row:
    """Decode with every token seen first, and one step ahead of that."""
    sampler, size, num_steps = SamplerSpec(temperature=1.0, seed=7), 5, 12
    pages = np.arange(size * 2, dtype=np.int32).reshape(size, 2)
    if not engine.can_follow((OutputSpec(np.array([0], np.int32), sampler),)):
        return _exact(f"{what} (not on this device)", 0, 0)
    results: list[list[list[int]]] = []
    for is_ahead in (False, True):
        tokens, found = [3] * size, list[list[int]]()
        for step in range(num_steps):
            batch = Batch(
                tuple(
                    ForwardRequest(
                        np.array([tokens[row]], np.int32),
                        np.array([step], np.int32),
                        pages[row],
                        step + 1,
                        outputs=(OutputSpec(np.array([0], np.int32), sampler),),
                        follows=row if is_ahead and step else -1,
                    )
                    for row in range(size)
                )
            )
            if not is_ahead:
                tokens = _tokens(engine.execute(batch))
                found.append(tokens)
                continue
            engine.submit(batch)
            if step:
                found.append(_tokens(engine.collect()))
        if is_ahead:
            found.append(_tokens(engine.collect()))
        results.append(found)
    pairs = zip(*(np.array(found).reshape(-1) for found in results), strict=True)
    return _exact(what, sum(int(a != b) for a, b in pairs), size * num_steps)


def _default_model(device: DeviceName) -> list[Row]:
    """Compare the model that comes with the package."""
    directory = default_model().directory
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    text = "Once upon a time there was a little dog who"
    logits: list[NDArray[np.float32]] = []
    name: DtypeName = "bfloat16" if device == "cuda" else "float32"
    ours = open_engine(
        directory, name="m", num_pages=16, dtype=name, device=device, num_threads=1
    )
    reference = open_engine(
        directory, name="m", num_pages=16, kernels="torch", num_threads=1
    )
    for loaded in (ours, reference):
        tokens = loaded.tokenizer.encode(text, add_special_tokens=True)
        forward = _forward(np.arange(16, dtype=np.int32), tokens, SamplerSpec())
        rows = np.arange(len(tokens), dtype=np.int32)
        forward.outputs = (OutputSpec(rows, SamplerSpec()),)
        logits.append(loaded.engine.forward_logits(Batch((forward,))))
        loaded.engine.close()
    return [_row(f"the default model, {directory.name}", logits[:1], logits[1:], dtype)]


def _write_adapter(path: Path, shape: str, seed: int) -> Path:
    """Write random factors for all linear layers, as PEFT does."""
    path.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for name, target in find_targets(read_shape(shape)).items():
        down = torch.randn(8, target.num_inputs, generator=generator)
        up = torch.randn(target.num_outputs, 8, generator=generator)
        scale = target.num_inputs**-0.5
        tensors[f"base_model.model.{name}.lora_A.weight"] = down * scale
        tensors[f"base_model.model.{name}.lora_B.weight"] = up * 0.05
    save_file(tensors, path / "adapter_model.safetensors")
    names = sorted(
        {name.rpartition(".")[2] for name in find_targets(read_shape(shape))}
    )
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": names}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


def _cases() -> dict[str, list[Batch]]:
    rng = np.random.default_rng(SEED)
    pages = rng.permutation(128).astype(np.int32).reshape(8, 16)

    def feed(row: int, start: int, count: int, mask: bool = False) -> ForwardRequest:
        hidden = None
        if mask:
            hidden = rng.random((count, start + count)) < 0.6
            hidden[:, -1] = True
        return ForwardRequest(
            rng.integers(0, 512, count).astype(np.int32),
            np.arange(start, start + count, dtype=np.int32),
            pages[row],
            start + count,
            hidden,
            (OutputSpec(np.arange(count, dtype=np.int32), SamplerSpec()),),
        )

    def feed_again(forward: ForwardRequest, start: int) -> ForwardRequest:
        again = feed(0, start, 1)
        again.page_ids = forward.page_ids
        return again

    prefill = Batch(tuple(feed(row, 0, 20 + 17 * row) for row in range(6)))
    lengths = [20 + 17 * row for row in range(6)]
    decode = Batch(tuple(feed(row, lengths[row], 1) for row in range(6)))
    shared = np.concatenate((pages[5][:6], pages[7][:10]))
    forked = feed(7, 100, 3)
    forked.page_ids = shared
    copies = (PageCopy(int(pages[5][6]), int(shared[6]), 0, 0, 4),)
    chunks = [Batch((feed(6, 32 * part, 32),)) for part in range(4)]
    masked = [feed(row, lengths[row] + 1, 1, True) for row in range(4)]
    mixed = (*masked, feed(4, lengths[4] + 1, 9), feed(5, lengths[5] + 1, 5, True))
    later = [Batch(tuple(feed(r, lengths[r] + 14, 1) for r in (4, 5)))]
    prompt = feed(0, 0, 40)
    branches = tuple(feed(row, 40, 1) for row in range(1, 5))
    for branch in branches:
        branch.page_ids = np.concatenate((pages[0][:2], branch.page_ids[2:]))
    tails = tuple(
        PageCopy(int(pages[0][2]), int(b.page_ids[2]), 0, 0, 8) for b in branches
    )
    stranger = feed(7, 0, 30)
    adapted = [feed(row, 0, 5 + 13 * row) for row in range(5)]
    following = [feed(row, 5 + 13 * row, 1) for row in range(5)]
    for forwards in (adapted, following):
        for forward, adapter in zip(forwards, "ab-ba", strict=True):
            forward.adapter = adapter.strip("-")
    return {
        "prefill": [prefill],
        "decode": [decode],
        "chunked": chunks,
        "forked": [Batch((forked,), copies)],
        "masked and mixed": [Batch(mixed)],
        "decode after a re-plan": [
            Batch((feed(4, lengths[4] + 10, 4), feed(5, lengths[5] + 6, 8))),
            *later,
        ],
        "common beginnings": [
            Batch((prompt,)),
            Batch((*branches, stranger), tails),
            Batch((*(feed_again(b, 41) for b in branches), feed(7, 30, 1))),
        ],
        "adapters": [Batch(tuple(adapted)), Batch(tuple(following))],
    }
