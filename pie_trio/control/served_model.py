"""A model as the control layer serves it: its pages, its batcher, its tokenizer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import trio

from pie_trio.control.detokenize import TokenTexts
from pie_trio.control.device_thread import OpenDevice, open_device_thread
from pie_trio.control.dispatch import Batcher, open_batcher
from pie_trio.control.embeds import EmbedPool
from pie_trio.control.export_recorder import ExportRecorder
from pie_trio.control.exports import ExportIndex
from pie_trio.control.pages import PagePool
from pie_trio.control.processors import Processors
from pie_trio.control.replicas import Replicas

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from pie_trio.config import ControlConfig
    from pie_trio.control.export_register import ExportRegister
    from pie_trio.control.placing import State
    from pie_trio.control.shared_exports import SharedExports
    from pie_trio.engine_api import Engine, ModelInfo, Tokenizer
    from pie_trio.errors import EngineLostError

__all__ = ["ServedModel", "open_served_model"]


@dataclass(slots=True, eq=False)
class ServedModel:
    """One model, or one replica of it, with everything that belongs to it alone.

    Attributes:
        info: Replaced when an adapter comes or goes.
        tokenizer_limiter: Of the threads in which long texts are tokenized.
        texts: What each token adds to a text.
        adapter_limiter: Of the thread in which adapters are loaded.
        recorder: Makes the exports that outlive the server.
        replicas: All engines of the model; mostly this one alone.
        shared_exports: Exports of all replicas, as they are seen from this one.
        number: Among the replicas, from 0.
        num_inferlets: That are placed here and have not ended.
    """

    info: ModelInfo
    tokenizer: Tokenizer
    pool: PagePool
    embeds: EmbedPool
    exports: ExportIndex
    batcher: Batcher
    config: ControlConfig
    tokenizer_limiter: trio.CapacityLimiter
    texts: TokenTexts
    processors: Processors
    adapter_limiter: trio.CapacityLimiter
    recorder: ExportRecorder
    replicas: Replicas = field(init=False)
    shared_exports: SharedExports = field(init=False)
    number: int = field(default=0, init=False)
    num_inferlets: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        Replicas([self])  # until others join it

    async def load_adapter(self, name: str, directory: Path) -> None:
        """Load an adapter on this replica: see :meth:`Replicas.load_adapter` for all of them.

        Whoever is cancelled meanwhile leaves it loaded.

        Raises:
            AdapterError: It cannot be used with this model, or the name cannot be had.
        """
        engine = self.batcher.engine
        try:
            await trio.to_thread.run_sync(
                engine.load_adapter, name, directory, limiter=self.adapter_limiter
            )
        finally:
            self.refresh_adapters()

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter that no command uses: see :meth:`Replicas.drop_adapter`.

        Raises:
            AdapterError: There is none of that name.
        """
        self.batcher.engine.drop_adapter(name)
        self.refresh_adapters()

    @property
    def state(self) -> State:
        """Whether there is an engine: ``lost`` where there never will be one again."""
        if self.batcher.refusal is not None:
            return "lost"
        return "ready" if self.batcher.is_restored else "restarting"

    def lose(self, error: EngineLostError) -> None:
        """Forget what the engine has taken along; the batcher has seen to pages and embeds."""
        self.exports.lose(f"the engine was lost: {error.reason}")
        self.shared_exports.drop_lost()
        self.processors.lose(error)

    def refresh_adapters(self) -> None:
        """Note which adapters the engine has."""
        self.info = replace(self.info, adapters=self.batcher.engine.info.adapters)


@asynccontextmanager
async def open_served_model(
    engine: Engine,
    tokenizer: Tokenizer,
    config: ControlConfig,
    *,
    max_in_flight: int,
    open_device: OpenDevice = open_device_thread,
    register: ExportRegister | None = None,
) -> AsyncGenerator[ServedModel]:
    """Serve a model for as long as the block is open. The engine stays the caller's.

    Args:
        engine: Of the model.
        tokenizer: Of the model.
        config: Of the control layer.
        max_in_flight: Commands of one inferlet.
        open_device: Opens what steps the engine.
        register: What keeps persistent exports; without one, they end with the block.
    """
    info = engine.info
    pool = PagePool(num_pages=info.num_pages, page_size=info.page_size)
    embeds = EmbedPool(info.num_embeds)
    async with open_batcher(
        engine,
        pool,
        embeds,
        config,
        max_in_flight=max_in_flight,
        open_device=open_device,
    ) as batcher:
        exports = ExportIndex(
            pool,
            trio.current_time,
            model=info.name,
            forget=None if register is None else register.forget,
        )
        recorder = ExportRecorder(info.name, exports, register, trio.current_time)
        await recorder.restore()
        model = ServedModel(
            info,
            tokenizer,
            pool,
            embeds,
            exports,
            batcher,
            config,
            trio.CapacityLimiter(1),
            TokenTexts(tokenizer),
            Processors(engine),
            trio.CapacityLimiter(1),
            recorder,
        )
        model.processors.wait_restored = batcher.wait_restored
        batcher.on_lost, batcher.on_restored = model.lose, model.refresh_adapters
        yield model
