"""The compiled cache: private, whole or not there, and quick the second time."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.wasm.compile_cache import (
    CompileCache,
    lock_directory,
    make_private_directory,
    write_whole,
)
from pie_trio.application.wasm.runtime import make_engine
from pie_trio.errors import CacheError, DamagedComponentError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def component(tmp_path: Path) -> Path:
    path = tmp_path / "empty.wat"
    path.write_text("(component)")
    return path


def test_a_component_is_compiled_once(tmp_path: Path, component: Path) -> None:
    cache = CompileCache(tmp_path / "cache")
    engine = make_engine()
    assert not cache.has(engine, component)
    cache.load(engine, component)
    assert cache.has(engine, component)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_damaged_file_is_compiled_again(tmp_path: Path, component: Path) -> None:
    cache = CompileCache(tmp_path / "cache")
    engine = make_engine()
    cache.load(engine, component)
    (compiled,) = (tmp_path / "cache").iterdir()
    compiled.write_bytes(compiled.read_bytes()[:1000])
    assert not cache.has(engine, component)
    cache.load(engine, component)
    assert cache.has(engine, component)


def test_another_component_is_another_file(tmp_path: Path, component: Path) -> None:
    cache = CompileCache(tmp_path / "cache")
    engine = make_engine()
    cache.load(engine, component)
    component.write_text('(component (import "x" (func)))')
    assert not cache.has(engine, component)


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    made = make_private_directory(tmp_path / "a" / "b")
    assert made.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(CacheError, match="chmod 700"):
        make_private_directory(tmp_path)


def test_a_directory_of_someone_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getuid", lambda: 12345678)
    with pytest.raises(CacheError, match="belongs to user"):
        make_private_directory(tmp_path)


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="--cache-dir"):
        make_private_directory(tmp_path / "file")


def test_writing_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(CacheError, match="cannot write"):
        write_whole(tmp_path / "taken", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="cannot write"):
        write_whole(tmp_path / "none" / "file", b"data")


def test_what_nobody_used_for_long_is_removed(tmp_path: Path, component: Path) -> None:
    cache = CompileCache(tmp_path / "cache")
    for name in ("old", "new"):
        (cache.directory / f"{name}.cwasm").write_bytes(b"")
    os.utime(cache.directory / "old.cwasm", (0, 0))
    cache.load(make_engine(), component)
    assert not (cache.directory / "old.cwasm").exists()
    assert (cache.directory / "new.cwasm").exists()


def test_only_one_has_the_cache(tmp_path: Path) -> None:
    with lock_directory(tmp_path), (tmp_path / ".lock").open("wb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with lock_directory(tmp_path):
        pass


def test_what_cannot_be_compiled_is_raised_here(tmp_path: Path) -> None:
    (tmp_path / "bad.wat").write_text("(component")
    with pytest.raises(DamagedComponentError):
        CompileCache(tmp_path / "cache").load(make_engine(), tmp_path / "bad.wat")
