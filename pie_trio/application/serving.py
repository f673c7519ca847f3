"""Put the layers together: engines and the control layer of each."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pie_trio.control.device_thread import OpenDevice, open_device_thread
from pie_trio.control.served_model import ServedModel, open_served_model

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pie_trio.config import ControlConfig, InstanceLimits
    from pie_trio.engine_api import Engine, Tokenizer

__all__ = ["LoadedEngine", "open_models"]


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine and the tokenizer of its model.

    Attributes:
        open_device: Opens what steps the engine: a thread, unless it is in another process.
    """

    engine: Engine
    tokenizer: Tokenizer
    open_device: OpenDevice = open_device_thread


@asynccontextmanager
async def open_models(
    engines: Sequence[LoadedEngine], control: ControlConfig, limits: InstanceLimits
) -> AsyncGenerator[Mapping[str, ServedModel]]:
    """Serve several models, each with its own pages and batcher; the first is the default."""
    async with AsyncExitStack() as stack:
        models = {}
        for loaded in engines:
            model = await stack.enter_async_context(
                open_served_model(
                    loaded.engine,
                    loaded.tokenizer,
                    control,
                    max_in_flight=limits.max_in_flight,
                    open_device=loaded.open_device,
                )
            )
            models[model.info.name] = model
        yield models
