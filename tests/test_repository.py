"""What holds of the repository as a whole: its top level, public names and directions."""

from __future__ import annotations

import ast
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

TOP_LEVEL = {
    *("pie_trio", "inferlet_py", "examples", "tests", "benchmarks", "docs", "training"),
    *("pyproject.toml", "noxfile.py", "Makefile"),
    *("README.md", "CHANGELOG.md", "LICENSE"),
}
PACKAGES = ("pie_trio", "inferlet_py")
GENERATED = {"componentize_py_types", "wit_world"}  # componentize-py's, in the guest


def sources(*folders: str) -> list[Path]:
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Return the full names of what a module imports, wherever in its text."""
    package = module_name(path).split(".")
    package = package if path.name == "__init__.py" else package[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            found.update(f"{origin}.{alias.name}" for alias in node.names)
    return found


def is_inside(name: str, *packages: str) -> bool:
    return any(name == p or name.startswith(f"{p}.") for p in packages)


def offenders(paths: list[Path], *forbidden: str) -> list[str]:
    return [
        f"{module_name(path)} imports {name}"
        for path in paths
        for name in sorted(imports(path))
        if is_inside(name, *forbidden)
    ]


def public_names(path: Path) -> set[str]:
    """Return the names without an underscore that a module's top level binds or imports."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.ImportFrom(module=str(module)) if module != "__future__":
                names.update(alias.asname or alias.name for alias in node.names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Assign(targets=targets):
                names.update(t.id for t in targets if isinstance(t, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
            case _:
                pass
    return {name for name in names if not name.startswith("_")}


def exported_names(path: Path) -> list[str] | None:
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names: list[str] = ast.literal_eval(value)
                return names
            case _:
                pass
    return None


def read_toml(name: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / name).read_text())


def needed(name: str) -> str:
    """Return pie-trio's requirement of one distribution."""
    needs: list[str] = read_toml("pyproject.toml")["project"]["dependencies"]
    (found,) = (need for need in needs if need.startswith(name))
    return found


def test_the_top_level_is_closed() -> None:
    if not (git := shutil.which("git")) or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True)
    paths = (Path(name) for name in done.stdout.split("\0") if name)
    names = {path.parts[0] for path in paths if (ROOT / path).exists()}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_exports_its_public_names_in_order(package: str) -> None:
    path = ROOT / package / "__init__.py"
    exported = exported_names(path)
    assert exported is not None
    constants_first = sorted(exported, key=lambda name: (not name.isupper(), name))
    assert exported == constants_first
    assert {name for name in exported if name != "__version__"} == public_names(path)


def test_every_exported_name_exists() -> None:
    for path in sources(*PACKAGES):
        missing = set(exported_names(path) or ()) - public_names(path) - {"__version__"}
        assert not missing, f"{module_name(path)} exports what it lacks"


def test_modules_of_the_sdk_are_private() -> None:
    names = {path.stem for path in (ROOT / "inferlet_py").glob("*.py")}
    assert {n for n in names if not n.startswith("_")} <= {"testing"}


def test_the_sdk_needs_nothing_but_the_standard_library() -> None:
    allowed = (*sys.stdlib_module_names, "inferlet_py", *GENERATED)
    plugin = (
        ROOT / "inferlet_py" / "testing.py"
    )  # pytest loads it, and it asks for Pie late
    for path in set(sources("inferlet_py")) - {plugin}:
        foreign = {name for name in imports(path) if not is_inside(name, *allowed)}
        assert not foreign, module_name(path)


def test_inference_does_not_know_what_stands_above_it() -> None:
    above = ("pie_trio.application", "pie_trio.control", "trio", "wasmtime")
    assert not offenders(sources("pie_trio/inference"), *above)


def test_control_knows_neither_the_device_nor_the_application() -> None:
    others = ("pie_trio.application", "pie_trio.inference", "torch", "wasmtime")
    assert not offenders(sources("pie_trio/control"), *others)


def test_wasmtime_is_imported_in_one_folder() -> None:
    home = ROOT / "pie_trio/application/wasm"
    others = [p for p in sources("pie_trio", "inferlet_py") if home not in p.parents]
    assert not offenders(others, "wasmtime")


def test_the_seam_between_the_layers_imports_none_of_them() -> None:
    layers = [f"pie_trio.{name}" for name in ("application", "control", "inference")]
    seam = [ROOT / "pie_trio" / f"{n}.py" for n in ("engine_api", "config", "errors")]
    assert not offenders(seam, *layers, "torch", "trio", "wasmtime")


def test_the_versions_agree() -> None:
    sdk = read_toml("inferlet_py/pyproject.toml")["project"]["version"]
    assert needed("inferlet-py") == f"inferlet-py=={sdk}"


def test_the_torch_that_is_installed_first_is_one_we_accept() -> None:
    script = runpy.run_path(str(ROOT / ".ci/install_torch.py"))
    oldest, too_new = script["OLDEST"], script["TOO_NEW"]
    bounds = [".".join(map(str, version)) for version in (oldest, too_new)]
    assert needed("torch") == f"torch>={bounds[0]},<{bounds[1]}"
    major, minor, _ = script["VERSION"].split(".")
    assert oldest <= (int(major), int(minor)) < too_new
