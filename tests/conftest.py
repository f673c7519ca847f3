"""What all tests share: the options of the matrix, the markers, and where models are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

BACKENDS = ("torch-cpu", "flashinfer")
MODES = ("wasm", "native")

# These import torch when they are collected. A test elsewhere must not import it at the top
# of its module: it asks for a fixture, and that for ``torch_is_there``.
TORCH_FOLDERS = ("inference", "training")
HAS_TORCH = importlib.util.find_spec("torch") is not None
collect_ignore = [] if HAS_TORCH else list(TORCH_FOLDERS)

HERE = Path(__file__).parent

# What another Python need not repeat once the default one has run everything, and why.
SAME_ON_EACH_PYTHON = {
    "application/chat/test_templates.py": "comparisons with what transformers renders",
    "application/host/test_session_random.py": "random calls; each has tests of its own",
    "benchmarks": "tools of a checkout, which run on its Python alone",
    "chaos": "random orders of events; what they are made of has tests of its own",
    "dashboard": "JavaScript in a browser",
    "fuzz": "random bytes and calls; their readers have tests of their own",
    "inference": "tensors; the command line and the examples load models on each Python",
    "test_api_reference.py": "a page, made from the sources",
    "test_limits_page.py": "a page, made from the sources",
    "test_repository.py": "the sources as texts",
    "training": "tensors, and tools of a checkout",
}

# A deadline for each example means nothing where cores are shared. Under CI hypothesis loads
# a profile of its own, which is also the same in every run.
# pytest --hypothesis-profile=pie-slow looks longer.
settings.register_profile("pie", deadline=None)
settings.register_profile(
    "pie-slow", deadline=None, max_examples=1000, stateful_step_count=60
)
if "CI" not in os.environ:
    settings.load_profile("pie")
settings.register_profile("pie-few", settings(), max_examples=20)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pie")
    group.addoption(
        "--backend",
        action="append",
        choices=BACKENDS,
        help="run tests with the fixture `backend` on it; repeatable (torch-cpu)",
    )
    group.addoption(
        "--mode",
        action="append",
        choices=MODES,
        help="run tests with the fixture `mode` in it; repeatable (both)",
    )
    group.addoption(
        "--what-depends-on-python",
        action="store_true",
        help="leave out what is the same on each Python, and take a few examples of properties",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("what_depends_on_python"):
        settings.load_profile("pie-few")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("what_depends_on_python"):
        return None
    if HERE not in collection_path.parents:
        return None
    return collection_path.relative_to(HERE).as_posix() in SAME_ON_EACH_PYTHON or None


def pytest_report_header(config: pytest.Config) -> list[str]:
    matrix = [*_backends(config), *_modes(config)]
    lines = [f"pie: {', '.join(matrix)}; shared folder: {find_shared() or 'none'}"]
    if not HAS_TORCH:
        folders = ", ".join(f"tests/{name}" for name in TORCH_FOLDERS)
        lines.append(
            f"pie: torch cannot be imported: {folders} and the tests that load a model "
            "are left out"
        )
    if config.getoption("what_depends_on_python"):
        lines.append("pie: properties take 20 examples, and these are left out:")
        lines += [f"pie:   {name}: {why}" for name, why in SAME_ON_EACH_PYTHON.items()]
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", _backends(metafunc.config), scope="session")
    if "mode" in metafunc.fixturenames:
        metafunc.parametrize("mode", _modes(metafunc.config), scope="session")


# First, so that -m sees the markers.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    folders = tuple(HERE / name for name in TORCH_FOLDERS)
    for item in items:
        fixtures = getattr(item, "fixturenames", ())
        if "torch_is_there" in fixtures or set(folders) & set(item.path.parents):
            item.add_marker("torch")
    if "slow" not in config.getoption("markexpr"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("torch") and not HAS_TORCH:
        pytest.skip("torch cannot be imported")
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session")
def torch_is_there() -> None:
    """Fixtures that load a model ask for this: it marks the tests that use them."""


@pytest.fixture(scope="session")
def shared_directory() -> Path:
    """The folder with trained models for tests; skips where it is absent."""
    if folder := find_shared():
        return folder
    pytest.skip("no models: set PIE_SHARED to the folder that holds models/")


@pytest.fixture(scope="session")
def trained_model(torch_is_there: None, shared_directory: Path) -> Path:
    """The directory of the smallest trained model."""
    return shared_directory / "models" / "stories260K"


def find_shared() -> Path | None:
    """Return ``$PIE_SHARED``, else a folder ``shared`` in or beside the checkout."""
    root = HERE.parent
    given = os.environ.get("PIE_SHARED")
    folders = [Path(given)] if given else [root / "shared", root.parent / "shared"]
    return next((f for f in folders if (f / "models").is_dir()), None)


def _backends(config: pytest.Config) -> list[str]:
    return config.getoption("backend") or ["torch-cpu"]


def _modes(config: pytest.Config) -> list[str]:
    return config.getoption("mode") or list(MODES)


def _has_gpu() -> bool:
    if not HAS_TORCH:
        return False
    import torch  # slow, so only for tests that are marked

    return torch.cuda.is_available()
