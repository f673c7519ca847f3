import sys
from pathlib import Path

import pytest

from training.plot import plot_losses

LOSSES = "step,tokens,loss\n20,40960,6.2\n40,81920,4.6\n"


def test_a_loss_curve_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "losses.csv").write_text(LOSSES)
    assert plot_losses(tmp_path)
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_log_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plot_losses(tmp_path)
    assert "pip install matplotlib" in caplog.text
    assert f"python -m training.plot {tmp_path}" in caplog.text
