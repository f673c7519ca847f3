"""The script for GPUs, as far as a machine without one can run it."""

from __future__ import annotations

import json
import sys
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.gpu import equivalence, models, parts, run_all
from benchmarks.gpu.plots import plot_ratios
from benchmarks.gpu.wheels import gather, strip_wheel
from pie_trio.inference import engine
from tests.inference.gpu.fake_flashinfer import FakeFlashInfer
from tests.inference.gpu.fakes import fake_kernels

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pie_trio.engine_api import SamplerSpec
    from pie_trio.inference.gpu.kernels import FlashInferKernels

    Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the script with small shapes on the CPU, and return its exit status."""

    def run(*options: str) -> int:
        fixed = ["--out", str(tmp_path), "--device", "cpu", "--small"]
        monkeypatch.setattr(sys, "argv", ["run_all", *fixed, *options])
        with pytest.raises(SystemExit) as ended:
            run_all.main()
        code = ended.value.code
        assert isinstance(code, int)
        return code

    return run


def test_a_part_that_was_done_is_not_done_again(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--only", "roofline") == 0
    first = (tmp_path / "roofline.json").read_text()
    assert json.loads(first)["rows"][0]["value"] > 0.0
    assert run("--only", "roofline") == 0
    assert (tmp_path / "roofline.json").read_text() == first
    assert "done before" in capsys.readouterr().out
    assert "no figure of a GPU" in (tmp_path / "table.md").read_text()


def test_a_part_that_fails_is_written_down_and_done_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[parts.Row]:
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setitem(run_all.PARTS, "roofline", fail)
        assert run("--only", "roofline") == 1
    assert "out of luck" in (tmp_path / "table.md").read_text()
    assert run("--only", "roofline") == 0


def test_every_comparison_passes_without_a_gpu(run: Run, tmp_path: Path) -> None:
    assert run("--only", "equivalence") == 0
    rows = json.loads((tmp_path / "equivalence.json").read_text())["rows"]
    assert all(row["is_ok"] for row in rows)
    found = " ".join(row["what"] for row in rows)
    for case in ("chunked", "masked", "common beginnings", "adapters", "samplers"):
        assert f"tiny-64 {case}" in found


def test_every_comparison_passes_over_the_fake_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Graphs, a cascade, masks and tokens that stay on the device, in bfloat16."""

    def choose(device: str, *_: object, **__: object) -> FlashInferKernels | None:
        return fake_kernels(FakeFlashInfer()) if device == "cuda" else None

    for module in (models, engine):
        monkeypatch.setattr(module, "choose_gpu", choose)
    rows = equivalence.equivalence("cuda", is_small=True)
    assert [row["what"] for row in rows if not row["is_ok"]] == []
    found = " ".join(row["what"] for row in rows)
    assert "graphs against their kernels" in found
    assert "not on this device" not in found


def test_a_comparison_finds_other_draws(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(_: object, specs: list[SamplerSpec], *__: object) -> NDArray[np.int32]:
        return np.zeros(len(specs), np.int32)

    monkeypatch.setattr(equivalence, "sample", other)
    assert run("--only", "equivalence") == 1
    assert "| NO |" in (tmp_path / "table.md").read_text()


def test_ratios_are_drawn_where_there_are_some(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    rows: list[parts.Row] = [{"what": "one", "ratio": 0.5}]
    others: list[parts.Row] = [{"what": "two"}]
    found = {"speed": rows, "other": others}
    assert plot_ratios(found, "a card", tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    assert not plot_ratios({"other": others}, "", tmp_path / "none.png")


def write_wheel(path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(path, "w") as wheel:
        for name in names:
            wheel.writestr(name, name * 10)
        wheel.writestr("a-1.dist-info/RECORD", "".join(f"{n},sha,1\n" for n in names))


def test_wheels_lose_what_is_not_used_and_their_lists_know_it(tmp_path: Path) -> None:
    source, target = tmp_path / "a.whl", tmp_path / "b.whl"
    write_wheel(source, ["a/__init__.py", "a/data/big/x.h", "a/data/keep.py"])
    strip_wheel(source, target, ("a/data/big/*",))
    with zipfile.ZipFile(target) as wheel:
        kept = ["a/__init__.py", "a/data/keep.py"]
        assert wheel.namelist() == [*kept, "a-1.dist-info/RECORD"]
        record = wheel.read("a-1.dist-info/RECORD").decode()
        assert record == "".join(f"{name},sha,1\n" for name in kept)


def test_a_wheel_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no wheel of flashinfer-jit-cache"):
        gather(tmp_path, tmp_path / "out")


def test_speed_is_no_figure_without_its_limit(run: Run, tmp_path: Path) -> None:
    assert run("--only", "engine_speed") == 1
    assert "run the part roofline first" in (tmp_path / "table.md").read_text()
