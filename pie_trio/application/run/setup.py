"""What has to be there before a program can run: the model, and the language component."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

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
SMALL_MODEL_BYTES = 32 << 20


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


def prepare_torch() -> None:
    """Set what torch reads when it is imported.

    Threads of an OpenMP pool that spin while they wait cost the event loop beside them up to
    8 ms a parallel region on few cores; passive ones give the core back.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def load_engine(config: ModelConfig) -> LoadedEngine:
    """Load a model. Blocks.

    Raises:
        ConfigError: torch is missing, or the model cannot be used.
    """
    prepare_torch()
    try:
        from pie_trio.inference.engine import open_engine, resolve_dtype
        from pie_trio.inference.kv_cache import num_pages_in
        from pie_trio.inference.model_directory import read_model_directory
    except ImportError as error:
        raise ConfigError(
            f"torch cannot be imported ({error}): install it, for a machine without a GPU with "
            "`pip install torch --index-url https://download.pytorch.org/whl/cpu`"
        ) from error
    num_pages = config.num_pages
    if num_pages is None:
        decoder = read_model_directory(config.directory).config
        num_pages = num_pages_in(
            config.kv_bytes,
            decoder,
            page_size=config.page_size,
            dtype=resolve_dtype(decoder, config.dtype),
        )
    loaded = open_engine(
        config.directory,
        name=config.name,
        num_pages=num_pages,
        page_size=config.page_size,
        dtype=config.dtype,
        num_threads=_num_threads(config),
        kernels=config.kernels,
        quantize=config.quantize,
    )
    try:
        for name, directory in config.adapters:
            loaded.engine.load_adapter(name, directory)
    except BaseException:
        loaded.engine.close()
        raise
    return LoadedEngine(loaded.engine, loaded.tokenizer)


def _num_threads(config: ModelConfig) -> int | None:
    """Return how many threads a step should use; None for torch's own choice.

    A second thread costs more than it saves on a model whose weights fit the caches: measured
    with 2 busy cores, 0.7 ms a step with one thread and 40 ms with two.
    """
    if config.num_threads is not None:
        return config.num_threads
    weights = sum(
        path.stat().st_size for path in config.directory.glob("*.safetensors")
    )
    return 1 if weights < SMALL_MODEL_BYTES else None


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
