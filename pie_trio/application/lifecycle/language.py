"""The language component: one Wasm component that runs any program sent as Python source.

componentize-py makes it from the SDK and the standard library, once for each version of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import inferlet_py
from pie_trio.application.wasm.compile_cache import make_private_directory, write_whole
from pie_trio.errors import CacheError

__all__ = [
    "RUN_COMPONENTIZE",
    "SDK",
    "build_language_component",
    "find_language_component",
    "language_digest",
]

APP = "from inferlet_py._component import Compiler, Program\n\n__all__ = ['Compiler', 'Program']\n"
APP_MODULE = "inferlet_app"
SDK = Path(inferlet_py.__file__).parent
RUN_COMPONENTIZE = "import sys; from componentize_py import script; sys.exit(script())"


def _sources() -> list[Path]:
    # `testing` stays outside, and `_bundled` is for components of one program.
    modules = [*SDK.glob("_*.py")]
    modules.remove(SDK / "_bundled.py")
    return sorted([*modules, *SDK.glob("wit/*.wit")])


def language_digest() -> str:
    """Return what identifies the component: the SDK, the WIT and the builder's version."""
    digest = hashlib.sha256(APP.encode())
    digest.update(importlib.metadata.version("componentize-py").encode())
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def _path(cache_directory: Path) -> Path:
    return cache_directory / f"language-{language_digest()}.wasm"


def find_language_component(cache_directory: Path) -> Path | None:
    """Return the component that was built before, if it is there."""
    path = _path(cache_directory)
    return path if path.exists() else None


def build_language_component(cache_directory: Path) -> Path:
    """Build the component, about 10 seconds, and return where it is kept.

    Raises:
        CacheError: It cannot be built or written.
    """
    make_private_directory(cache_directory)
    target = _path(cache_directory)
    with tempfile.TemporaryDirectory(prefix="pie-language-") as name:
        folder = Path(name)
        sdk = folder / "inferlet_py"
        sdk.mkdir()
        for path in SDK.glob("_*.py"):
            shutil.copy(path, sdk)
        (folder / f"{APP_MODULE}.py").write_text(APP)
        built = folder / "language.wasm"
        environment = {
            **os.environ,
            "RUST_BACKTRACE": "0",
        }  # its own says nothing of Python
        command = [
            *(sys.executable, "-c", RUN_COMPONENTIZE),
            *("-d", str(SDK / "wit"), "-w", "language"),
            *("componentize", "-p", str(folder), APP_MODULE, "-o", str(built)),
        ]
        with subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                output, error = process.communicate()
            finally:
                process.kill()  # after Ctrl-C nothing may be left; else it has ended
        if process.returncode != 0 or not built.exists():
            output = (error or output).strip()
            raise CacheError(
                f"componentize-py could not build the language component:\n{output}"
            )
        write_whole(target, built.read_bytes())
    for old in cache_directory.glob("language-*.wasm"):
        if old != target:
            old.unlink(missing_ok=True)
    return target
