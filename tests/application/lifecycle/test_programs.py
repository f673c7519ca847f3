"""Programs as files, folders and zips."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.lifecycle.programs import load_program
from pie_trio.errors import ProgramError

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_a_program_of_one_module(tmp_path: Path) -> None:
    (tmp_path / "story.py").write_text("x = 1")
    program = load_program(tmp_path / "story.py")
    assert (program.name, program.entry) == ("story", "story.py")
    assert program.modules == {"story.py": "x = 1"}


def test_a_folder_is_a_program_of_all_its_modules(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    (folder / "lib").mkdir(parents=True)
    (folder / "__pycache__").mkdir()
    (folder / ".hidden").mkdir()
    for name in ("app.py", "lib/tools.py", "__pycache__/x.py", ".hidden/y.py"):
        (folder / name).write_text(name)
    program = load_program(folder)
    assert (program.name, program.entry) == ("agent", "app.py")
    assert set(program.modules) == {"app.py", "lib/tools.py"}


def test_a_zip_is_the_same_program_as_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    folder.mkdir()
    (folder / "app.py").write_text("print()")
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.write(folder / "app.py", "app.py")
        archive.writestr("README.md", "not a module")
    assert load_program(tmp_path / "agent.zip") == load_program(folder)


def test_the_digest_knows_every_module(tmp_path: Path) -> None:
    digests = set()
    for text in ("a", "b"):
        (tmp_path / "app.py").write_text(text)
        digests.add(load_program(tmp_path).digest)
    (tmp_path / "other.py").write_text("")
    digests.add(load_program(tmp_path).digest)
    assert len(digests) == 3


def test_an_encoding_line_is_respected(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_bytes("# coding: latin-1\nx = 'é'".encode("latin-1"))
    assert "é" in load_program(tmp_path).modules["app.py"]


def write_zip(path: Path, name: str, data: str = "x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


def test_bad_programs_say_what_was_expected(tmp_path: Path) -> None:
    def refuse(path: Path, message: str) -> None:
        with pytest.raises(ProgramError, match=message):
            load_program(path)

    refuse(tmp_path / "nothing", "there is no program")
    (tmp_path / "notes.txt").write_text("")
    refuse(tmp_path / "notes.txt", "is not a program")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    refuse(tmp_path / "binary.py", "is not Python text")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no Python modules")
    (tmp_path / "empty" / "a.py").write_text("")
    (tmp_path / "empty" / "b.py").write_text("")
    refuse(tmp_path / "empty", "has no app.py.*a.py, b.py")
    (tmp_path / "broken.zip").write_bytes(b"PK nonsense")
    refuse(tmp_path / "broken.zip", "no zip archive")
    refuse(write_zip(tmp_path / "up.zip", "../up.py"), "outside of the archive")
    refuse(write_zip(tmp_path / "root.zip", "/up.py"), "outside of the archive")
    refuse(write_zip(tmp_path / "bomb.zip", "app.py", " " * (9 << 20)), "too large")


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "app.py").mkdir()
    with pytest.raises(ProgramError):
        load_program(tmp_path)
