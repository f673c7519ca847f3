"""Load a model: in this process, or in one of its own."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pie_trio.application.engines.gpu import visible_gpus
from pie_trio.application.engines.memory import RUN_KV_BYTES, size_models
from pie_trio.application.engines.process import engine_environment, num_cores
from pie_trio.application.engines.remote import RemoteEngine
from pie_trio.errors import ConfigError

if TYPE_CHECKING:
    from pie_trio.config import EngineProcessConfig, ModelConfig
    from pie_trio.engine_api import Tokenizer
    from pie_trio.inference.engine import LoadedModel, TorchEngine
    from pie_trio.inference.parallel.part import Part

__all__ = [
    "check_parallel",
    "check_replicas",
    "leaves_core",
    "open_model",
    "prepare_torch",
    "start_engine",
    "with_pages",
]

SMALL_MODEL_BYTES = 32 << 20


def prepare_torch() -> None:
    """Set what torch reads when it is imported.

    Threads of an OpenMP pool that spin while they wait cost the event loop beside them up to
    8 ms a parallel region on few cores; passive ones give the core back.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def open_model(config: ModelConfig, part: Part | None = None) -> LoadedModel:
    """Load a model in this process. Blocks.

    Args:
        config: The model.
        part: The rank that this process is; None where it has all of the model.

    Raises:
        ConfigError: torch is missing, or the model cannot be used.
    """
    prepare_torch()
    try:
        from pie_trio.inference.engine import open_engine
    except ImportError as error:
        raise ConfigError(
            f"torch cannot be imported ({error}): install it, for a machine without a GPU with "
            "`pip install torch --index-url https://download.pytorch.org/whl/cpu`"
        ) from error
    num_pages = with_pages(config).num_pages
    assert num_pages is not None, "it was chosen"
    loaded = open_engine(
        config.directory,
        name=config.name,
        num_pages=num_pages,
        page_size=config.page_size,
        num_embeds=config.num_embeds,
        dtype=config.dtype,
        num_threads=_num_threads(config),
        kernels=config.kernels,
        quantize=config.quantize,
        device=config.device,
        part=part,
    )
    try:
        for name, directory in config.adapters:
            loaded.engine.load_adapter(name, directory)
    except BaseException:
        loaded.engine.close()
        raise
    return loaded


def start_engine(
    config: ModelConfig,
    process: EngineProcessConfig | None = None,
    *,
    replica: int = 0,
) -> tuple[RemoteEngine, Tokenizer]:
    """Load a model in a process of its own, and its tokenizer in this one. Blocks.

    torch is not imported here.

    Args:
        config: The model.
        process: Times and limits.
        replica: Which of the model's engines, from 0.

    Raises:
        ConfigError: torch is missing, or the model cannot be used.
        EngineError: The process has ended.
    """
    from pie_trio.inference.model_directory import read_model_directory
    from pie_trio.inference.parallel.split import check_split
    from pie_trio.inference.tokenizer import load_tokenizer

    # Before a process is started; and each one gets the same number of pages.
    found, config = read_model_directory(config.directory), with_pages(config)
    check_replicas(config)
    check_parallel(config)
    check_split(found.config, config.tensor_parallel)
    tokenizer = load_tokenizer(
        found.path / "tokenizer.json", vocab_size=found.config.vocab_size
    )
    engine = RemoteEngine(
        config.name if config.replicas == 1 else f"{config.name} (replica {replica})",
        partial(_open_engine, replace(config, adapters=())),
        engine_environment(_num_threads(config)) | _own_gpus(config, replica),
        adapters=config.adapters,
        config=process,
    )
    return engine, tokenizer


def with_pages(config: ModelConfig) -> ModelConfig:
    """Return a model with a number of KV pages, for one that is loaded alone.

    Raises:
        ConfigError: It does not fit the memory.
    """
    if config.num_pages is not None:
        return config
    return size_models([config], default_kv_bytes=RUN_KV_BYTES)[0]


def check_parallel(config: ModelConfig) -> None:
    """Check whether ranks can be where the model is to run.

    Raises:
        ConfigError: They cannot, or there are too few GPUs.
    """
    size = config.tensor_parallel
    if size == 1:
        return
    if size < 1:
        raise ConfigError(f"--tensor-parallel takes 1 or more, got {size}")
    if config.device == "auto":
        raise ConfigError(
            f"--tensor-parallel {size} needs to know where the ranks are: say --device cuda, "
            "or --device cpu"
        )
    if config.device == "cuda":
        visible_gpus(size)


def check_replicas(config: ModelConfig) -> None:
    """Check whether the replicas of a model can be where it is to run.

    Raises:
        ConfigError: They cannot, or there are too few GPUs.
    """
    count = config.replicas
    if count < 1:
        raise ConfigError(f"--replicas takes 1 or more, got {count}")
    if count == 1:
        return
    if config.device == "auto":
        raise ConfigError(
            f"--replicas {count} needs to know where the replicas are: say --device cuda, or "
            "--device cpu"
        )
    if config.device == "cuda":
        visible_gpus(count * config.tensor_parallel)


def _own_gpus(config: ModelConfig, replica: int) -> dict[str, str]:
    """Return which GPUs a replica sees, as the environment of its process says it."""
    if config.replicas == 1 or config.device != "cuda":
        return {}
    size = config.tensor_parallel
    names = visible_gpus(config.replicas * size)[replica * size :][:size]
    return {"CUDA_VISIBLE_DEVICES": ",".join(names)}


def _open_engine(config: ModelConfig) -> TorchEngine:
    size = config.tensor_parallel
    if size == 1:
        return _open_part(config, None)
    from pie_trio.application.engines.ranks import open_ranks

    prepare_torch()
    opener = partial(_open_part, config)
    if config.device == "cuda":
        # Each process sees its own, as the first.
        return open_ranks(opener, size, device="cuda:0", gpus=visible_gpus(size))
    return open_ranks(opener, size)


def _open_part(config: ModelConfig, part: Part | None) -> TorchEngine:
    return open_model(config, part).engine


def leaves_core(config: ModelConfig) -> bool:
    """Say whether its engines' steps leave the server a core of its own.

    Threads that wait for each other and for a core that the server has just taken make steps
    longer than the server makes the time between them.
    """
    has_driver = shutil.which("nvidia-smi") is not None
    if config.device == "cuda" or (config.device == "auto" and has_driver):
        return True
    num_processes = config.tensor_parallel * config.replicas
    num_threads = _num_threads(config) or num_cores()
    return num_threads * num_processes < num_cores()


def _num_threads(config: ModelConfig) -> int | None:
    """Return how many threads a step should use; None for torch's own choice.

    Ranks and replicas share the cores.

    A second thread costs more than it saves on a model whose weights fit the caches: measured
    with 2 busy cores, 0.7 ms a step with one thread and 40 ms with two.
    """
    if config.num_threads is not None:
        return config.num_threads
    weights = sum(
        path.stat().st_size for path in config.directory.glob("*.safetensors")
    )
    if weights < SMALL_MODEL_BYTES:
        return 1
    num_processes = config.tensor_parallel * config.replicas
    return max(1, num_cores() // num_processes) if num_processes > 1 else None
