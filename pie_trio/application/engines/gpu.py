"""Which GPUs there are, and how much memory they have left, without importing torch."""

from __future__ import annotations

import os
import shutil
import subprocess

from pie_trio.errors import ConfigError

__all__ = ["free_gpu_bytes", "visible_gpus"]

_TIMEOUT_SECONDS = 20.0
_QUERY = ("--query-gpu=memory.free", "--format=csv,noheader,nounits")


def visible_gpus(count: int) -> list[str]:
    """Return the first GPUs of those that ``CUDA_VISIBLE_DEVICES`` leaves, by their names there.

    Raises:
        ConfigError: It leaves fewer.
    """
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None:
        return [str(index) for index in range(count)]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if len(names) < count:
        raise ConfigError(
            f"{count} GPUs are asked for, but CUDA_VISIBLE_DEVICES={text} leaves "
            f"{len(names)}: name more there, or start with --device cpu"
        )
    return names[:count]


def free_gpu_bytes(count: int = 1) -> int:
    """Return what is free on each of the first GPUs: the least of them.

    Raises:
        ConfigError: There are fewer, or their driver does not answer.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        raise ConfigError(
            "--device cuda needs a GPU with its driver, but there is no nvidia-smi: install "
            "the driver, or start with --device cpu"
        )
    query = (*_QUERY, f"--id={','.join(visible_gpus(count))}")
    try:
        done = subprocess.run(
            [tool, *query],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=True,
        )
        found = [int(text) << 20 for text in done.stdout.split()[:count]]
        if len(found) < count:
            raise ValueError(f"{count} GPUs are asked for, and it knows {len(found)}")
        return min(found)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise ConfigError(
            f"nvidia-smi does not tell how much memory is free ({error}): look at the driver, "
            "say --kv-pages, or start with --device cpu"
        ) from error
