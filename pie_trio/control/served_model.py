"""A model as the control layer serves it: its pages, its batcher, its tokenizer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from pie_trio.control.dispatch import Batcher, open_batcher
from pie_trio.control.pages import PagePool
from pie_trio.control.rendezvous import Rendezvous

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
    """

    info: ModelInfo
    tokenizer: Tokenizer
    pool: PagePool
    batcher: Batcher
    rendezvous: Rendezvous
    config: ControlConfig
    tokenizer_limiter: trio.CapacityLimiter


@asynccontextmanager
async def open_served_model(
    engine: Engine, tokenizer: Tokenizer, config: ControlConfig, *, max_in_flight: int
) -> AsyncGenerator[ServedModel]:
    """Serve a model for as long as the block is open. The engine stays the caller's."""
    info = engine.info
    pool = PagePool(num_pages=info.num_pages, page_size=info.page_size)
    rendezvous = Rendezvous()
    async with open_batcher(
        engine, pool, rendezvous, config, max_in_flight=max_in_flight
    ) as batcher:
        yield ServedModel(
            info,
            tokenizer,
            pool,
            batcher,
            rendezvous,
            config,
            trio.CapacityLimiter(1),
        )
