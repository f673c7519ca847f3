"""Gathers what a GPU host without a package registry needs, and counts it.

    python -m benchmarks.gpu.wheels --from DIR --out DIR [--limit 64]

``--from`` has the wheels of :data:`WHEELS` as pip has downloaded them (``--print`` says with what), and
kernels built ahead of time (``flashinfer_jit_cache``). They are copied without what is not used:
sources of kernels, and kernels that nothing calls. Then they are counted, together with the files
that git tracks; more than the limit is an error.

The host has Python 3.12 with torch for CUDA, Triton, transformers, tokenizers, safetensors and numpy.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from benchmarks.harness import make_parser

MIB = 1 << 20

WHEELS = (
    "flashinfer-python==0.6.18.post1",
    "apache-tvm-ffi==0.1.15.post2",
    "componentize-py==0.25.1",
    "llguidance==1.9.1",
    "outcome==1.3.0.post0",
    "rich==15.0.0",
    "sniffio==1.3.1",
    "trio==0.35.0",
    "wasmtime==50.0.1",
)
"""What the parts import and the host lacks; nothing here serves HTTP."""

UNUSED = {
    # With kernels built ahead of time nothing is compiled; but templates in csrc are read.
    "flashinfer_python": tuple(
        f"flashinfer/data/{name}/*" for name in ("cutlass", "cccl", "spdlog", "include")
    ),
    # Draws are ours, and so is the search for the likeliest tokens; masks are packed on the host.
    "flashinfer_jit_cache": tuple(
        f"*/jit_cache/{name}*/*" for name in ("topk", "sampling", "batch_attention", "quantization")
    ),
}  # fmt: skip
"""Files that are left out, by wheel."""


def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--from", dest="source", type=Path, help="downloaded wheels")
    parser.add_argument("--out", type=Path, help="where to")
    parser.add_argument("--limit", type=float, default=64.0, help="MiB in all")
    parser.add_argument(
        "--print", action="store_true", help="only say what to download"
    )
    options = parser.parse_args()
    if options.print or options.source is None or options.out is None:
        print(
            "pip download --no-deps --only-binary=:all: --python-version 3.12 "
            "--platform manylinux_2_28_x86_64 --platform manylinux_2_31_x86_64 "
            f"--platform manylinux1_x86_64 --platform any {' '.join(WHEELS)}"
        )
        return
    sizes = gather(options.source, options.out)
    sizes["the files that git tracks"] = tracked_bytes()
    for name, size in sizes.items():
        print(f"{size / MIB:7.2f} MiB  {name}")
    total = sum(sizes.values()) / MIB
    print(f"{total:7.2f} MiB  in all, of {options.limit:g}")
    sys.exit(0 if total <= options.limit else 1)


def gather(source: Path, out: Path) -> dict[str, int]:
    """Copy wheels without what is not used.

    Args:
        source: Has them; others are left alone.
        out: Made where it is missing.

    Returns:
        Bytes by name.

    Raises:
        FileNotFoundError: One is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, int] = {}
    for spec in ("flashinfer-jit-cache==*", *WHEELS):
        name, _, version = spec.partition("==")
        name = name.replace("-", "_")
        found = sorted(source.glob(f"{name}-{version}-*.whl"))
        if not found:
            raise FileNotFoundError(f"{source} has no wheel of {spec}: download it")
        target = out / found[0].name
        strip_wheel(found[0], target, UNUSED.get(name, ()))
        sizes[target.name] = target.stat().st_size
    return sizes


def strip_wheel(source: Path, target: Path, unused: tuple[str, ...]) -> None:
    """Copy a wheel without some files; pip wants the list of the others to be right.

    Args:
        source: To read.
        target: To write.
        unused: Patterns of names.
    """

    def is_unused(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in unused)

    with (
        zipfile.ZipFile(source) as old,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new,
    ):
        for info in old.infolist():
            if is_unused(info.filename):
                continue
            data = old.read(info)
            if info.filename.endswith(".dist-info/RECORD"):
                lines = data.decode().splitlines(keepends=True)
                kept = [line for line in lines if not is_unused(line.split(",")[0])]
                data = "".join(kept).encode()
            new.writestr(info.filename, data)


def tracked_bytes() -> int:
    """Return the bytes of all files that git tracks or would, as they are now."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    paths = (Path(name) for name in listed.split("\0") if name)
    return sum(path.stat().st_size for path in paths if path.is_file())


if __name__ == "__main__":
    main()
