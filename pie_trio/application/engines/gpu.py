"""How much memory a GPU has left, without importing torch."""

from __future__ import annotations

import shutil
import subprocess

from pie_trio.errors import ConfigError

__all__ = ["free_gpu_bytes"]

_TIMEOUT_SECONDS = 20.0
_QUERY = ("--query-gpu=memory.free", "--format=csv,noheader,nounits", "--id=0")


def free_gpu_bytes() -> int:
    """Return what is free on the first GPU of this machine.

    Raises:
        ConfigError: There is none, or its driver does not answer.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise ConfigError(
            "--device cuda needs a GPU with its driver, but there is no nvidia-smi: install "
            "the driver, or start with --device cpu"
        )
    try:
        done = subprocess.run(
            [tool, *_QUERY],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        return int(done.stdout.split()[0]) << 20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        raise ConfigError(
            f"nvidia-smi does not tell how much memory is free ({error}): look at the driver, "
            "say --kv-pages, or start with --device cpu"
        ) from error
