"""On which replica of a model an inferlet runs, which is decided once and holds for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pie_trio.control.served_model import ServedModel

__all__ = ["Load", "Placement", "State", "choose_replica"]

State = Literal["ready", "restarting", "lost"]
"""Of an engine: ``lost`` where there never will be one again."""

ORDER: tuple[State, ...] = ("ready", "restarting", "lost")


@dataclass(frozen=True, slots=True)
class Load:
    """What is known of a replica when an inferlet is to be placed.

    Attributes:
        state: Of its engine.
        num_free: KV pages that are free, or could be at once.
        num_inferlets: That are placed there and have not ended.
    """

    state: State
    num_free: int
    num_inferlets: int


def choose_replica(loads: Sequence[Load]) -> int:
    """Return the number of the replica on which the next inferlet runs.

    It is the one with the most free pages for each inferlet, the new one with them; of several,
    the one with the fewest inferlets, and then the first. One whose engine is gone is taken only
    where no other is left.

    Args:
        loads: Of all replicas, by number; one or more.
    """

    def rank(number: int) -> tuple[int, float, int, int]:
        load = loads[number]
        share = load.num_free / (load.num_inferlets + 1)
        return ORDER.index(load.state), -share, load.num_inferlets, number

    return min(range(len(loads)), key=rank)


class Placement(dict[str, "ServedModel"]):
    """The replicas that one inferlet uses, by the name of the model.

    The replica of a model is chosen when it is first asked for: an inferlet counts where it
    computes, and not on models that it never uses. A child has its parent's replica, so that
    what one of them exports the other imports without a copy.

    Args:
        models: Of the server, by name.
        above: Of the inferlet that launched this one; None where none has.
    """

    def __init__(
        self, models: Mapping[str, ServedModel], above: Placement | None = None
    ) -> None:
        super().__init__()
        self._models, self._above = models, above
        self._is_closed = False

    def __missing__(self, name: str) -> ServedModel:
        """Place the inferlet on a replica of this model.

        Raises:
            KeyError: There is no such model.
        """
        replicas = self._models[name].replicas
        chosen = replicas.choose() if self._above is None else self._above[name]
        if not self._is_closed:
            chosen.num_inferlets += 1
            self[name] = chosen
        return chosen

    def close(self) -> None:
        """Count the inferlet no more; its replicas can still be asked for. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            for model in self.values():
                model.num_inferlets -= 1
