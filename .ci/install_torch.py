"""Install a torch without CUDA into the environment of the Python that runs this.

On Linux PyPI's torch is the CUDA build, several GB of it. The builds without CUDA carry the
local version ``+cpu``, which PyPI cannot hold: asking for exactly that never fetches the other.

Exits with 0 if torch is there, and with 3 if no build for this machine can be had.
"""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys

VERSION = "2.13.0"
OLDEST, TOO_NEW = (2, 11), (2, 14)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
UNAVAILABLE = 3

# An index that does not answer must not hold us up: 2 connections of 15 seconds.
PIP = (sys.executable, "-m", "pip", "install", "--retries=1", "--timeout=15")


def find_installed() -> str | None:
    """Return the version of a torch that will do, of whatever build: it was asked for."""
    try:
        version = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
    major, minor = version.split(".")[:2]
    return version if OLDEST <= (int(major), int(minor)) < TOO_NEW else None


def attempts() -> list[tuple[str, list[str]]]:
    """Return where to look, nearest first, and pip's arguments for it."""
    if sys.platform != "linux":  # PyPI's own builds are without CUDA
        return [("PyPI", [f"torch=={VERSION}"])]
    requirement = f"torch=={VERSION}+cpu"
    return [
        ("where pip is set up to look", [requirement]),
        (CPU_INDEX, [f"--index-url={CPU_INDEX}", requirement]),
    ]


def main() -> int:
    """Install torch, or say what to do."""
    if version := find_installed():
        print(f"torch {version} is there")  # noqa: T201
        return 0
    failures = []
    for place, arguments in attempts():
        print(f"torch {VERSION} without CUDA: looking at {place}", flush=True)  # noqa: T201
        # Its dependencies come with the project, from the usual index.
        command = [*PIP, "--no-deps", "--only-binary=:all:", *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode == 0:
            return 0
        failures.append(f"{place}:\n{done.stderr.strip()}")
    python = f"Python {platform.python_version()}"
    sys.stderr.write(
        "\n".join(failures)
        + f"\n\nNo torch {VERSION} without CUDA for {python} on {platform.platform()}.\n"
        "Any of these will do:\n"
        f"  - connect this machine to {CPU_INDEX}, and run this again\n"
        "  - download the wheel elsewhere, and name its folder: PIP_FIND_LINKS=DIR make ...\n"
        "  - take a Python that has one (after make clean): make ... PYTHON=python3.11\n"
        "  - install a torch from 2.11 to 2.13 into this environment yourself, of any build:\n"
        f"    {sys.executable} -m pip install 'torch>=2.11,<2.14'  (on Linux: with CUDA)\n"
    )
    return UNAVAILABLE


if __name__ == "__main__":
    sys.exit(main())
