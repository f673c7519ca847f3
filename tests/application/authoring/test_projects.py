"""Projects: which modules and which manifest they have; the modules of dependencies."""

from __future__ import annotations

import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.authoring.dependencies import collect_modules
from pie_trio.application.authoring.projects import load_project
from pie_trio.errors import ManifestError, ProgramError

if TYPE_CHECKING:
    from pathlib import Path

APP = "from inferlet_py import inferlet\n\n@inferlet\nasync def main() -> None: ...\n"
PYPROJECT = "[project]\nname = 'poet'\n[tool.pie]\n[tool.pie.limits]\npages = 7\n"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write(
        tmp_path / "p",
        app_py=APP,
        helper_py="x = 1",
        tests__test_app_py="import pytest",
    )
    (tmp_path / "p" / "pyproject.toml").write_text(PYPROJECT)
    return tmp_path / "p"


def install(
    site: Path, name: str, version: str, files: dict[str, str], needs: str = ""
) -> None:
    """Lay out a distribution as pip does."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    requires = "".join(f"Requires-Dist: {need}\n" for need in needs.split(";;") if need)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}"
    )
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in files))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    install(folder, "leaf", "1.2", {"leaf/__init__.py": "A = 1", "leaf/deep/b.py": ""})
    install(
        folder,
        "stem",
        "2.0",
        {"stem.py": "import leaf"},
        "leaf>=1;;winonly; os_name == 'nt'",
    )
    install(
        folder,
        "quick",
        "1.0",
        {"quick/__init__.py": "", "quick/_fast.cpython-311.so": ""},
    )
    install(folder, "slow", "1.0", {"slow.py": ""}, "quick")
    return folder


def test_a_folder_has_its_manifest_and_leaves_its_tests_out(project: Path) -> None:
    found = load_project(project)
    assert sorted(found.program.modules) == ["app.py", "helper.py"]
    assert found.program.name == "poet"
    assert found.manifest.limits.pages == 7


def test_a_zip_is_the_same_as_its_folder(project: Path, tmp_path: Path) -> None:
    archive = tmp_path / "p.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("app.py", "helper.py", "pyproject.toml"):
            file.write(project / name, name)
    found, expected = load_project(archive), load_project(project)
    assert found.program == expected.program
    assert found.manifest == expected.manifest


def test_a_file_takes_its_block_or_the_manifest_beside_it(project: Path) -> None:
    assert load_project(project / "app.py").manifest.limits.pages == 7
    text = "# /// pie\n# [limits]\n# pages = 3\n# ///\n" + APP
    other = write(project, other_py=text) / "other.py"
    assert load_project(other).manifest.limits.pages == 3


def test_two_manifests_are_one_too_many(project: Path) -> None:
    write(project, app_py="# /// pie\n# name = 'x'\n# ///\n" + APP)
    with pytest.raises(ManifestError, match="keep one"):
        load_project(project)


def test_the_entry_may_have_another_name(project: Path) -> None:
    (project / "app.py").rename(project / "start.py")
    (project / "pyproject.toml").write_text("[tool.pie]\nentry = 'start.py'\n")
    assert load_project(project).program.entry == "start.py"
    (project / "pyproject.toml").write_text("[tool.pie]\nentry = 'begin.py'\n")
    with pytest.raises(ProgramError, match=r"entry is begin\.py, which is not there"):
        load_project(project)


def test_modules_of_dependencies_and_of_theirs_come_along(
    project: Path, site: Path
) -> None:
    (project / "pyproject.toml").write_text(
        "[project]\nname = 'p'\ndependencies = ['stem', 'inferlet-py']\n[tool.pie]\n"
    )
    found = load_project(project)
    assert sorted(found.program.modules) == [
        *("app.py", "helper.py", "leaf/__init__.py", "leaf/deep/b.py", "stem.py")
    ]
    assert found.own == {"app.py", "helper.py"}
    plain = load_project(project / "helper.py").program
    assert plain.digest != found.program.digest


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("missing-one>=1", 'say pip install "missing-one>=1"'),
        ("leaf>=9", "needs leaf>=9, but 1.2 is installed"),
        ("slow", "quick has native code (quick/_fast.cpython-311.so)"),
        ("leaf ==== 1", "is no requirement"),
    ],
)
def test_what_cannot_be_bundled_is_refused_by_name(
    site: Path, requirement: str, message: str
) -> None:
    with pytest.raises(ProgramError) as error:
        collect_modules([requirement])
    assert message in str(error.value)
