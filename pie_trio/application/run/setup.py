"""What has to be there before a program can run: the model, and the language component."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pie_trio.application.engines.device import open_process_device
from pie_trio.application.engines.loading import (
    leaves_core,
    open_model,
    prepare_torch,
    start_engine,
)
from pie_trio.application.lifecycle.language import (
    build_language_component,
    find_language_component,
)
from pie_trio.application.run.console import long_step
from pie_trio.application.serving import LoadedEngine
from pie_trio.application.wasm.compile_cache import CompileCache, lock_directory
from pie_trio.application.wasm.runtime import make_engine
from pie_trio.config import ModelConfig, WasmConfig
from pie_trio.errors import ConfigError, DamagedComponentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pie_trio.application.wasm.compile_cache import WasmEngine

__all__ = [
    "default_model",
    "load_engine",
    "parse_adapters",
    "parse_model",
    "prepare_component",
    "prepare_language",
    "prepare_torch",
]

PACKAGED_MODEL = Path(__file__).parent.parent.parent / "models" / "pie_tiny"
BUILD_SECONDS = 20.0
COMPILE_SECONDS = 10.0


def parse_model(text: str) -> ModelConfig:
    """Read ``DIR`` or ``NAME=DIR``.

    Raises:
        ConfigError: There is no directory in it.
    """
    name, separator, directory = text.partition("=")
    if not separator:
        name, directory = "", text
    if not directory:
        raise ConfigError(f"--model takes DIR or NAME=DIR, got {text!r}")
    path = Path(directory).expanduser()
    return ModelConfig(path, name or path.resolve().name)


def parse_adapters(
    texts: Sequence[str], models: Sequence[ModelConfig]
) -> dict[str, tuple[tuple[str, Path], ...]]:
    """Read ``NAME=DIR`` or, where there are several models, ``MODEL:NAME=DIR``.

    Returns:
        The adapters of each model, by its name.

    Raises:
        ConfigError: A text is neither, there is no such model, or a name occurs twice.
    """
    found: dict[str, dict[str, Path]] = {model.name: {} for model in models}
    for text in texts:
        whole, separator, directory = text.partition("=")
        model, _, name = whole.rpartition(":")
        if not (name and separator and directory):
            raise ConfigError(
                f"--adapter takes NAME=DIR or MODEL:NAME=DIR, got {text!r}"
            )
        if not model and len(models) > 1:
            raise ConfigError(
                f"--adapter {text}: say of which model ({', '.join(found)}), for example "
                f"--adapter {models[0].name}:{text}"
            )
        adapters = found.get(model or models[0].name)
        if adapters is None:
            raise ConfigError(
                f"--adapter {text}: there is no model {model!r}, only {', '.join(found)}"
            )
        if name in adapters:
            raise ConfigError(f"two adapters are called {name}: choose another name")
        adapters[name] = Path(directory).expanduser()
    return {model: tuple(adapters.items()) for model, adapters in found.items()}


def default_model(packaged: Path = PACKAGED_MODEL) -> ModelConfig:
    """Return the model to use where none was named: ``$PIE_MODEL``, else pie-tiny.

    Raises:
        ConfigError: There is neither.
    """
    if named := os.environ.get("PIE_MODEL"):
        return parse_model(named)
    if (packaged / "config.json").exists():
        return ModelConfig(packaged, "pie-tiny")
    raise ConfigError(
        "no model: pass --model DIR, a directory in the Hugging Face layout (config.json, "
        "*.safetensors, tokenizer.json) with a model of a supported family, or set PIE_MODEL"
    )


def load_engine(
    config: ModelConfig,
    kind: Literal["thread", "process"] | None = None,
    *,
    replica: int = 0,
) -> LoadedEngine:
    """Load a model in this process, to be stepped by a thread, or in a process of its own. Blocks.

    Args:
        config: The model.
        kind: Where; None for a thread, if that is possible.
        replica: Which of the model's engines, from 0.

    Raises:
        ConfigError: torch is missing, or the model cannot be used.
        EngineError: The process has ended.
    """
    if kind == "thread" and config.replicas > 1:
        raise ConfigError(
            f"--replicas {config.replicas} needs processes: start with --engine process, the "
            "default"
        )
    has_ranks = config.tensor_parallel > 1
    if kind == "thread" and has_ranks:
        raise ConfigError(
            f"--tensor-parallel {config.tensor_parallel} needs processes: start with --engine "
            "process, the default"
        )
    if not has_ranks and config.replicas == 1 and kind != "process":
        loaded = open_model(config)
        is_gpu = loaded.engine.is_pipelined
        return LoadedEngine(loaded.engine, loaded.tokenizer, leaves_core=is_gpu)
    engine, tokenizer = start_engine(config, replica=replica)
    return LoadedEngine(
        engine,
        tokenizer,
        lambda _: open_process_device(engine),
        leaves_core=leaves_core(config),
    )


def prepare_language(wasm: WasmConfig) -> Path:
    """Build and compile the language component unless that was done before. Blocks.

    Raises:
        CacheError: It cannot be built, or the cache cannot be used.
    """
    cache = CompileCache(wasm.cache_directory)
    engine = make_engine()
    path = find_language_component(wasm.cache_directory)
    if path is not None and cache.has(engine, path):
        return path
    with lock_directory(wasm.cache_directory):
        path = find_language_component(wasm.cache_directory)  # another run may have won
        if path is not None:
            try:
                _compile(cache, engine, path)
            except DamagedComponentError:
                path.unlink(missing_ok=True)  # damaged
            else:
                return path
        with long_step(
            "building the language component", estimate_seconds=BUILD_SECONDS
        ):
            path = build_language_component(wasm.cache_directory)
        _compile(cache, engine, path)
    return path


def prepare_component(wasm: WasmConfig, path: Path) -> Path:
    """Compile the component of a program unless that was done before. Blocks.

    Raises:
        CacheError: The cache cannot be used.
        DamagedComponentError: It is no component that can be compiled.
    """
    cache = CompileCache(wasm.cache_directory)
    _compile(cache, make_engine(), path, path.name)
    return path


def _compile(
    cache: CompileCache,
    engine: WasmEngine,
    path: Path,
    name: str = "the language component",
) -> None:
    if not cache.has(engine, path):
        with long_step(f"compiling {name}", estimate_seconds=COMPILE_SECONDS):
            cache.load(engine, path)
