"""Contexts that outlive a program: what their exports carry, and prefixes found again.

A prefix is exported page by page. The name of a page is the hash of all tokens up to its end,
so that programs which begin alike find as much as they have in common.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from typing import TYPE_CHECKING

from inferlet_py._errors import BadArgumentError
from inferlet_py._host import get_host

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferlet_py._models import Model

__all__ = [
    "import_prefix",
    "pack_tokens",
    "page_names",
    "runs_of",
    "unpack_tokens",
]

PREFIX = "prefix/"


def pack_tokens(
    token_ids: Sequence[int],
    num_written: int,
    hidden: Iterable[int],
    adapter: str,
    dropped: Sequence[int] = (),
) -> bytes:
    """Return the metadata of an exported context."""
    found: dict[str, object] = {
        "tokens": list(token_ids),
        "written": num_written,
        "hidden": sorted(hidden),
    }
    if adapter:
        found["adapter"] = adapter
    if dropped:
        found["dropped"] = list(dropped)
    return json.dumps(found).encode()


def unpack_tokens(
    name: str, metadata: bytes
) -> tuple[list[int], int, list[int], str, list[int]]:
    """Return the tokens of an exported context and how many its pages hold.

    After these come the hidden ones, the adapter that the pages were computed with, and where
    in their order pages were dropped, ascending.

    Raises:
        BadArgumentError: The export is no context.
    """
    try:
        found = json.loads(metadata)
        tokens, hidden = (
            list(map(int, found["tokens"])),
            list(map(int, found["hidden"])),
        )
        dropped = list(map(int, found.get("dropped", ())))
        adapter = str(found.get("adapter", ""))
        return tokens, int(found["written"]), hidden, adapter, dropped
    except (ValueError, TypeError, KeyError):
        raise BadArgumentError(
            f"the export {name!r} holds pages, but no context: export it with "
            "Context.export(), or import its pages with a Queue"
        ) from None


def runs_of(slots: Iterable[int]) -> list[tuple[int, int]]:
    """Return the runs of adjacent slots, ascending: the first of each and what is behind it."""
    runs = list[tuple[int, int]]()
    for slot in sorted(slots):
        if runs and runs[-1][1] == slot:
            runs[-1] = runs[-1][0], slot + 1
        else:
            runs.append((slot, slot + 1))
    return runs


def page_names(
    token_ids: Sequence[int], page_size: int, adapter: str = ""
) -> list[str]:
    """Return the names of the full pages that hold these tokens.

    What an adapter has written is found by those who use the same one alone.
    """
    digest = hashlib.sha256(adapter.encode() + b"\0" if adapter else b"")
    names: list[str] = []
    for start in range(0, len(token_ids) - page_size + 1, page_size):
        digest.update(array("I", token_ids[start : start + page_size]).tobytes())
        names.append(PREFIX + digest.hexdigest()[:40])
    return names


def import_prefix(model: Model, names: Sequence[str]) -> list[int]:
    """Import pages, the first ones of a context, until one is not there.

    Returns:
        The numbers of the pages.
    """
    if not names:
        return []
    numbers = model.new_page_numbers(len(names))
    count = get_host().import_prefix(model.queue, list(names), numbers)
    return numbers[:count]
