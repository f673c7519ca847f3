"""The key-value store of the inferlet's owner."""

from __future__ import annotations

from typing import cast

from inferlet_py._checkpoints import checkpoint_if_cancelled
from inferlet_py._host import get_host
from inferlet_py._tasks import wait_ticket

__all__ = ["Store", "store"]


class Store:
    """Keys and values that survive the end of the inferlet, and of the server.

    There is one, ``store``, for all inferlets of an owner. Of calls that run at the same time in
    several branches, none is first. A call that is cancelled may or may not have been carried
    out.

    All calls raise:
        BadArgumentError: The key is empty, or no text.
        FailedError: The store cannot be used: its disk is full, or it is locked.
        LimitError: A key or a value is too large, or the owner has too many of them.
    """

    async def get(self, key: str) -> bytes | None:
        """Return the value of a key; None if it has none."""
        host = get_host()
        ticket = host.store_get(key)
        await wait_ticket(ticket)
        return host.take_value(ticket)

    async def get_text(self, key: str) -> str | None:
        """Return the value of a key as text; None if it has none.

        Raises:
            UnicodeDecodeError: The value is not UTF-8.
        """
        value = await self.get(key)
        return None if value is None else value.decode()

    async def set(self, key: str, value: str | bytes) -> None:
        """Give a key a value; text becomes UTF-8. The value is on the disk when this returns."""
        await checkpoint_if_cancelled()
        given = cast("object", value)  # authors without a type checker pass anything
        if isinstance(given, str):
            data = given.encode()
        elif isinstance(given, bytes):
            data = given
        else:
            raise TypeError(
                f"a value is text or bytes, got {type(given).__name__}: convert it first, "
                "for example with json.dumps"
            )
        host = get_host()
        ticket = host.store_set(key, data)
        await wait_ticket(ticket)
        host.finish(ticket)

    async def delete(self, key: str) -> bool:
        """Remove a key, and say whether it was there."""
        await checkpoint_if_cancelled()
        host = get_host()
        ticket = host.store_delete(key)
        await wait_ticket(ticket)
        return host.take_flag(ticket)

    async def exists(self, key: str) -> bool:
        """Say whether a key has a value."""
        host = get_host()
        ticket = host.store_exists(key)
        await wait_ticket(ticket)
        return host.take_flag(ticket)

    async def list_keys(
        self, prefix: str = "", *, after: str = "", limit: int = 1000
    ) -> list[str]:
        """Return keys that begin with ``prefix``, in the order of their characters.

        Args:
            prefix: May be empty.
            after: Only keys after this one: the last of the page before.
            limit: Most keys to return; the server returns no more than 10,000.
        """
        host = get_host()
        ticket = host.store_list_keys(prefix, after, min(limit, (1 << 32) - 1))
        await wait_ticket(ticket)
        return list(host.take_keys(ticket))


store = Store()
