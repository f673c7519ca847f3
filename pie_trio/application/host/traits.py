"""What a model must have for a call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.errors import UnsupportedError

if TYPE_CHECKING:
    from pie_trio.engine_api import ModelInfo

__all__ = ["check_trait"]


def check_trait(info: ModelInfo, trait: str) -> None:
    """Raise unless a model has a trait.

    Raises:
        UnsupportedError: It lacks it; the message names it.
    """
    if trait not in info.traits:
        raise UnsupportedError(
            f"{info.name} lacks the trait {trait!r}: it has {', '.join(info.traits)}"
        )
