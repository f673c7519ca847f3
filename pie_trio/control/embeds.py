"""Places for hidden states in device memory: who holds which."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.errors import OutOfEmbedsError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["EmbedPool"]


class EmbedPool:
    """The embed slots of one model. A slot has an owner, or pins of unfinished commands.

    Attributes:
        lost: Slots whose contents have gone with an engine.
    """

    def __init__(self, num_embeds: int) -> None:
        self.num_embeds = num_embeds
        self._is_owned = [False] * num_embeds
        self._is_filled = [False] * num_embeds
        self.lost: set[int] = set()
        self._pins = [0] * num_embeds
        self._free = list(range(num_embeds - 1, -1, -1))  # a stack

    @property
    def num_free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    def check_free(self, count: int) -> None:
        """Raise unless so many slots are free.

        Raises:
            OutOfEmbedsError: There are fewer.
        """
        if count > len(self._free):
            raise OutOfEmbedsError(
                needed=count, free=len(self._free), total=self.num_embeds
            )

    def allocate(self) -> int:
        """Return a slot with an owner; :meth:`check_free` let it through."""
        slot = self._free.pop()
        self._is_owned[slot] = True
        self._is_filled[slot] = False
        self.lost.discard(slot)
        return slot

    def note_stored(self, slots: Iterable[int]) -> None:
        """Note that the engine has stored hidden states here."""
        for slot in slots:
            self._is_filled[slot] = True

    def note_lost(self, slots: Iterable[int]) -> None:
        """Note that what was to be stored here never will be, whatever was there before."""
        for slot in slots:
            self._is_filled[slot] = False

    def lose_device(self) -> None:
        """Note that everything on the device is gone. No command is on its way."""
        self.lost.update(
            slot for slot, is_there in enumerate(self._is_filled) if is_there
        )
        self._is_filled = [False] * self.num_embeds

    def are_filled(self, slots: Iterable[int]) -> bool:
        """Say whether all of these hold a hidden state of their owner's."""
        return all(self._is_filled[slot] for slot in slots)

    def release(self, slot: int) -> None:
        """Take the owner away; the slot is free once nothing holds it."""
        assert self._is_owned[slot], "a slot is released once"
        self._is_owned[slot] = False
        self._free_if_unheld(slot)

    def pin(self, slots: Iterable[int]) -> None:
        """Keep slots from being freed while a command may use them."""
        for slot in slots:
            self._pins[slot] += 1

    def unpin(self, slots: Iterable[int]) -> None:
        """Undo one :meth:`pin`."""
        for slot in slots:
            assert self._pins[slot] > 0, "a slot is unpinned once a pin"
            self._pins[slot] -= 1
            self._free_if_unheld(slot)

    def check(self) -> None:
        """Assert what must hold after every command; for tests and debugging."""
        free = set(self._free)
        assert len(free) == len(self._free), "no slot is free twice"
        for slot in range(self.num_embeds):
            is_held = self._is_owned[slot] or self._pins[slot] > 0
            assert is_held != (slot in free), "a slot is either held or free"

    def _free_if_unheld(self, slot: int) -> None:
        if not self._is_owned[slot] and self._pins[slot] == 0:
            self._free.append(slot)
