"""Everything that a GPU has to show, part by part; what was done is not done again.

    python -m benchmarks.gpu.run_all --out DIR [--only PART] [--again] [--device cpu --small]

Each part writes DIR/PART.json as soon as it is done, and DIR/table.md and DIR/ratios.png grow with it.
A part that fails says so there, and the others go on. Without a GPU ``--device cpu --small`` runs
the same parts on the engine of the CPU: that shows that the script works, and nothing about a GPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu import equivalence, parts, stack
from benchmarks.gpu.plots import plot_ratios
from benchmarks.harness import describe_machine, make_parser

if TYPE_CHECKING:
    from collections.abc import Callable

    from pie_trio.inference.gpu.choosing import DeviceName

PARTS: dict[str, Callable[..., list[parts.Row]]] = {
    "roofline": parts.roofline,
    "equivalence": equivalence.equivalence,
    "engine_speed": parts.engine_speed,
    "whole_stack": stack.whole_stack,
    "transformers": stack.transformers,
}

NEED_LIMITS = ("engine_speed", "whole_stack", "transformers")


def main() -> None:
    parser = make_parser((__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for results")
    parser.add_argument("--only", choices=[*PARTS], nargs="+", default=[*PARTS])
    parser.add_argument("--again", action="store_true", help="also what was done")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small shapes")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.only:
        path = options.out / f"{part}.json"
        if path.exists() and not options.again and _load(path).get("rows") is not None:
            print(f"{part}: done before, see {path}")
            continue
        print(f"{part} ...", flush=True)
        found = run_part(part, options.device, options.out, is_small=options.small)
        # First beside, then in place: a run that is cut off leaves no half of a file.
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(found, indent=2))
        beside.replace(path)
        write_table(options.out)
        print(found.get("error") or f"{part}: {found['seconds']:.1f} s", flush=True)
    print((options.out / "table.md").read_text())
    results = [_load(options.out / f"{part}.json") for part in options.only]
    is_ok = all(r.get("rows") is not None for r in results)
    is_ok &= all(row.get("is_ok", True) for r in results for row in r.get("rows") or ())
    sys.exit(0 if is_ok else 1)


def run_part(
    part: str, device: DeviceName, out: Path, *, is_small: bool
) -> dict[str, Any]:
    """Run one part and return what is written down about it."""
    found: dict[str, Any] = {
        "part": part,
        "device": _describe_device(device),
        "machine": describe_machine(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "is_small": is_small,
    }
    start = time.perf_counter()
    try:
        more: dict[str, Any] = {}
        if part in NEED_LIMITS:
            path = out / "roofline.json"
            if not path.exists() or _load(path).get("rows") is None:
                raise RuntimeError(
                    "run the part roofline first: speed is a ratio to it"
                )
            more["limits"] = _load(path)["rows"]
        found["rows"] = PARTS[part](device, is_small=is_small, **more)
    except Exception as error:  # noqa: BLE001 -- the other parts go on, and the file tells
        found["error"] = f"{part} failed: {error}"
        found["traceback"] = traceback.format_exc()
    found["seconds"] = time.perf_counter() - start
    return found


def write_table(out: Path) -> None:
    """Write what there is so far."""
    lines: list[str] = []
    for part in PARTS:
        if not _exists(out, part):
            continue
        found = _load(out / f"{part}.json")
        lines += [f"## {part}: {found['device']}, {found['date']}", ""]
        if found.get("rows") is None:
            lines += [found["error"], ""]
            continue
        lines += [
            "| what | value | unit | of the limit | of the engine | ok |",
            "|---|---|---|---|---|---|",
        ]
        for row in found["rows"]:
            ratio, of_engine = (
                f"{row[name]:.2f}" if name in row else ""
                for name in ("ratio", "of_engine")
            )
            ok = {True: "yes", False: "NO", None: ""}[row.get("is_ok")]
            value = f"{row['value']:.4g}"
            lines.append(
                f"| {row['what']} | {value} | {row['unit']} | {ratio} | {of_engine} | {ok} |"
            )
        lines.append("")
    (out / "table.md").write_text("\n".join(lines))
    done = {part: _load(out / f"{part}.json") for part in PARTS if _exists(out, part)}
    rows = {part: found.get("rows") or [] for part, found in done.items()}
    titles = {f"{found['device']}, {found['date']}" for found in done.values()}
    plot_ratios(rows, "; ".join(sorted(titles)), out / "ratios.png")


def _describe_device(device: DeviceName) -> str:
    if device != "cuda":
        return "CPU (no figure of a GPU)"
    if not torch.cuda.is_available():
        return "no GPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return done.stdout.strip() or torch.cuda.get_device_name()


def _exists(out: Path, part: str) -> bool:
    return (out / f"{part}.json").exists()


def _load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


if __name__ == "__main__":
    main()
