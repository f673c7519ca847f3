"""Put the layers together: engines and the control layer of each."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pie_trio.control.device_thread import OpenDevice, open_device_thread
from pie_trio.control.replicas import Replicas
from pie_trio.control.served_model import ServedModel, open_served_model

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from pie_trio.config import ControlConfig, InstanceLimits
    from pie_trio.control.export_register import ExportRegister
    from pie_trio.engine_api import Engine, Tokenizer

__all__ = ["LoadedEngine", "open_models"]


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine and the tokenizer of its model.

    Attributes:
        open_device: Opens what steps the engine: a thread, unless it is in another process.
        leaves_core: While it computes, this process has a core for itself.
    """

    engine: Engine
    tokenizer: Tokenizer
    open_device: OpenDevice = open_device_thread
    leaves_core: bool = False


@asynccontextmanager
async def open_models(
    engines: Sequence[LoadedEngine],
    control: ControlConfig,
    limits: InstanceLimits,
    register: ExportRegister | None = None,
) -> AsyncGenerator[Mapping[str, ServedModel]]:
    """Serve several models, each with its own pages and batcher; the first is the default.

    Of a model with several engines the first stands for it, and knows the others.

    Args:
        engines: Of the models. Those of one name are replicas of one model.
        control: Of each model.
        limits: Of each instance.
        register: What keeps persistent exports; without one, they end with the block.
    """
    async with AsyncExitStack() as stack:
        members = dict[str, list[ServedModel]]()
        for loaded in engines:
            model = await stack.enter_async_context(
                open_served_model(
                    loaded.engine,
                    loaded.tokenizer,
                    _control_of(loaded, control),
                    # An instance may wait for pages that it imports from another replica.
                    max_in_flight=limits.max_in_flight + 1,
                    open_device=loaded.open_device,
                    register=register,
                )
            )
            members.setdefault(model.info.name, []).append(model)
        for replicas in members.values():
            if len(replicas) > 1:
                Replicas(replicas)
        yield {name: replicas[0] for name, replicas in members.items()}


def _control_of(loaded: LoadedEngine, control: ControlConfig) -> ControlConfig:
    if control.goes_ahead is not None:
        return control
    return replace(control, goes_ahead=loaded.leaves_core)
