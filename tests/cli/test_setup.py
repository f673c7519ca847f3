"""The language component: a damaged one is built again, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pie_trio.application.run import setup
from pie_trio.config import WasmConfig
from pie_trio.errors import CacheError

if TYPE_CHECKING:
    from pathlib import Path


def use_builds(
    monkeypatch: pytest.MonkeyPatch, folder: Path, texts: list[str]
) -> list[str]:
    """Let the component be found as a file, and built from the next of ``texts``."""
    path = folder / "language.wat"

    def build(_: Path) -> Path:
        path.write_text(texts.pop(0))
        return path

    def find(_: Path) -> Path | None:
        return path if path.exists() else None

    monkeypatch.setattr(setup, "find_language_component", find)
    monkeypatch.setattr(setup, "build_language_component", build)
    return texts


def test_a_damaged_component_is_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = use_builds(monkeypatch, tmp_path, ["(component)", "unused"])
    (tmp_path / "language.wat").write_text("(compon")
    config = WasmConfig(cache_directory=tmp_path)
    path = setup.prepare_language(config)
    assert path.read_text() == "(component)"
    assert setup.prepare_language(config) == path
    assert texts == ["unused"]


def test_a_component_that_stays_damaged_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_builds(monkeypatch, tmp_path, ["(compon"])
    with pytest.raises(CacheError, match="cannot compile"):
        setup.prepare_language(WasmConfig(cache_directory=tmp_path))
