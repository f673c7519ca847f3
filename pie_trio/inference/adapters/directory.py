"""The two files of a PEFT directory; what is in them is read elsewhere."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pie_trio.errors import AdapterError

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "hash_directory"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def hash_directory(directory: Path | str) -> bytes:
    """Return 32 bytes that tell adapters with different files from each other.

    Raises:
        AdapterError: One of the files is missing or unreadable.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        path = Path(directory).expanduser() / name
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise AdapterError(
                f"{path}: {error.strerror}: an adapter is a directory that PEFT has saved, "
                f"with {CONFIG_FILE} and {WEIGHTS_FILE}"
            ) from error
    return digest.digest()
