"""What an export may be, and how many an owner may have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pie_trio.errors import BadArgumentError, LimitError

if TYPE_CHECKING:
    from pie_trio.control.exported import Export

__all__ = ["MAX_EXPORTS_OF_OWNER", "Usage", "check_export", "check_usage"]

MAX_NAME_CHARACTERS = 256
MAX_METADATA_BYTES = 1 << 20
MAX_USERS = 1024
"""To whom one export is given by name."""
MAX_METADATA_BYTES_OF_OWNER = 1 << 26
MAX_EXPORTS_OF_OWNER = 4096
MAX_PAGES_OF_OWNER = 1 << 18
"""In exports, shared ones counted each time: handles count elsewhere, and need not stay."""


@dataclass(slots=True)
class Usage:
    """What the exports of an owner take."""

    num: int = 0
    num_pages: int = 0
    num_bytes: int = 0

    def add(self, export: Export, sign: int) -> None:
        """Count an export, or with -1 one less."""
        self.num += sign
        self.num_pages += sign * len(export.pages)
        self.num_bytes += sign * len(export.metadata)


def check_export(export: Export) -> None:
    """Check what was given for a new export.

    Raises:
        BadArgumentError: The name or the pages are not usable.
        LimitError: There are too many users or there is too much metadata.
    """
    name = export.name
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise BadArgumentError(
            f"the name of an export has 1 to {MAX_NAME_CHARACTERS} printable characters, "
            f"got {name[:40]!r}"
        )
    if not export.pages or len(set(export.pages)) != len(export.pages):
        raise BadArgumentError(
            "an export has at least one page, and none twice (forks of a page that were not "
            "written since are one page)"
        )
    if len(export.permission.users) > MAX_USERS:
        raise LimitError(
            f"an export is for at most {MAX_USERS} users by name, got "
            f"{len(export.permission.users)}: publish it, or make another one for the rest"
        )
    if len(export.metadata) > MAX_METADATA_BYTES:
        raise LimitError(
            f"the metadata of an export has at most {MAX_METADATA_BYTES} bytes, "
            f"got {len(export.metadata)}"
        )


def check_usage(used: Usage, export: Export, replaced: Export | None) -> None:
    """Check what an owner has besides.

    Args:
        used: By all exports of the owner.
        export: A new one.
        replaced: What it replaces.

    Raises:
        LimitError: It would be too much.
    """
    usage = replace(used)
    if replaced is not None:
        usage.add(replaced, -1)
    if usage.num >= MAX_EXPORTS_OF_OWNER:
        raise LimitError(
            f"{export.owner} has {usage.num} exports, which is as many as an owner may "
            "have: take some back first"
        )
    usage.add(export, 1)
    if usage.num_bytes > MAX_METADATA_BYTES_OF_OWNER:
        raise LimitError(
            f"the metadata of {export.owner}'s exports would have {usage.num_bytes} bytes, "
            f"but {MAX_METADATA_BYTES_OF_OWNER} are the limit: take some back first"
        )
    if usage.num_pages > MAX_PAGES_OF_OWNER:
        raise LimitError(
            f"the exports of {export.owner} would have {usage.num_pages} pages, but "
            f"{MAX_PAGES_OF_OWNER} are the limit: take some back first"
        )
