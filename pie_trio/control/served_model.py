"""A model as the control layer serves it: its pages, its batcher, its tokenizer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from pie_trio.control.detokenize import TokenTexts
from pie_trio.control.dispatch import Batcher, open_batcher
from pie_trio.control.embeds import EmbedPool
from pie_trio.control.exports import ExportIndex
from pie_trio.control.pages import PagePool
from pie_trio.control.processors import Processors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from pie_trio.config import ControlConfig
    from pie_trio.engine_api import Engine, ModelInfo, Tokenizer

__all__ = ["ServedModel", "open_served_model"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model with everything that belongs to it alone.

    Attributes:
        tokenizer_limiter: Of the threads in which long texts are tokenized.
        texts: What each token adds to a text.
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


@asynccontextmanager
async def open_served_model(
    engine: Engine, tokenizer: Tokenizer, config: ControlConfig, *, max_in_flight: int
) -> AsyncGenerator[ServedModel]:
    """Serve a model for as long as the block is open. The engine stays the caller's."""
    info = engine.info
    pool = PagePool(num_pages=info.num_pages, page_size=info.page_size)
    embeds = EmbedPool(info.num_embeds)
    async with open_batcher(
        engine, pool, embeds, config, max_in_flight=max_in_flight
    ) as batcher:
        exports = ExportIndex(pool, trio.current_time)
        batcher.reclaim = exports.reclaim
        yield ServedModel(
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
        )
