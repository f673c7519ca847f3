"""What CI runs: ``nox`` alone is lint, typing and tests; the other sessions run on request."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import nox

if TYPE_CHECKING:
    from collections.abc import Generator

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13"]
DEFAULT_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
PYPROJECT = nox.project.load_toml("pyproject.toml")
NUM_WORKERS = f"--numprocesses={max(3, os.cpu_count() or 1)}"
"""Of tests at a time: most of them wait for processes, so there are more than processors."""
CHECKED_PYTHON = f"tests-{DEFAULT_PYTHON}(torch-cpu)"
"""The session in whose environment types are checked too."""

INSTALLED_FROM = (
    *("noxfile.py", "pyproject.toml", "inferlet_py/pyproject.toml"),
    *(".ci/install_torch.py", "pie_trio/inference/kernels/kernels.cpp"),
)
"""What decides on what an environment has."""

nox.needs_version = ">=2026.10"
nox.options.reuse_venv = "yes"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False


def show_pyenv_pythons() -> None:
    """Let nox find every Python that pyenv keeps: its shims run only the chosen ones."""
    versions = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    folders = [str(f) for v in PYTHONS for f in sorted(versions.glob(f"{v}.*/bin"))]
    os.environ["PATH"] = os.pathsep.join([*folders, os.environ["PATH"]])


def backends() -> list[str]:
    """Return what this machine can run: FlashInfer only where a GPU is."""
    if not shutil.which("nvidia-smi"):
        return ["torch-cpu"]
    done = subprocess.run(
        ["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False
    )
    return ["torch-cpu", "flashinfer"] if "GPU" in done.stdout else ["torch-cpu"]


def install(session: nox.Session, *groups: str, backend: str = "torch-cpu") -> None:
    """Install the project and some dependency groups, unless that was done before.

    torch comes without CUDA, but for FlashInfer. A Python for which there is no such torch
    gets everything else; only the default Python may not lack it.
    """
    stamp = Path(session.virtualenv.location) / "installed-from"
    wanted = fingerprint(*groups, backend)
    if stamp.exists() and stamp.read_text() == wanted:
        session.log("everything is installed: nothing that decides on it has changed")
        return
    needs = [*PYPROJECT["project"]["dependencies"]]
    has_torch = True
    if backend == "flashinfer":
        needs += PYPROJECT["project"]["optional-dependencies"]["cuda"]
    else:
        has_torch = install_cpu_torch(session)
    if not has_torch:
        if session.python in (None, False, DEFAULT_PYTHON):
            session.error("the default Python needs torch: see above")
        session.warn(f"no torch for Python {session.python}: its tests are left out")
        needs = [need for need in needs if not need.startswith("torch")]
    needs = [need for need in needs if not need.startswith("inferlet-py")]
    session.install(*needs, *nox.project.dependency_groups(PYPROJECT, *groups))
    # Without torch nothing runs the kernels. They are optional: without a compiler there are none.
    no_compiler = {} if has_torch else {"CC": "false", "CXX": "false"}
    ours = ("--editable=./inferlet_py", "--editable=.")
    with alone_in_checkout():
        session.install("--no-deps", *ours, env=no_compiler)
    note = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    session.run_install("python", "-c", note, str(stamp), wanted, log=False)


def fingerprint(*choices: str) -> str:
    """Return what is another text when an environment has to be installed again."""
    read = hashlib.sha256()
    for name in INSTALLED_FROM:
        read.update((ROOT / name).read_bytes())
    return f"{' '.join(choices)} {read.hexdigest()}"


@contextmanager
def alone_in_checkout() -> Generator[None]:
    """Wait until no other session builds in the checkout, and build there alone."""
    folder = ROOT / ".nox"
    folder.mkdir(exist_ok=True)
    with (folder / "building.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install_cpu_torch(session: nox.Session) -> bool:
    """Return whether there is a torch now."""
    unavailable = 3
    session.run_install(
        "python", ".ci/install_torch.py", success_codes=[0, unavailable]
    )
    find = "import importlib.util; print(importlib.util.find_spec('torch') is not None)"
    found = session.run_install("python", "-c", find, silent=True)
    return found is None or "True" in str(found)  # None: nox -R installs nothing


show_pyenv_pythons()


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style and the format."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check", "--diff", *session.posargs)


@nox.session(venv_backend="none")
def typing(session: nox.Session) -> None:
    """Check the types, of everything with mypy and of the packages with pyright."""
    # They look into all that is installed, so they have no environment of their own.
    name = re.sub(r"\W+", "-", CHECKED_PYTHON).strip("-")
    folder = ROOT / ".nox" / name / "bin"
    session.run(sys.executable, "-m", "nox", "--install-only", "-s", CHECKED_PYTHON)
    tools = ("mypy", "pyright")
    with ThreadPoolExecutor(len(tools)) as pool:
        path = os.pathsep.join([str(folder), os.environ["PATH"]])
        found = [
            pool.submit(
                session.run,
                *(str(folder / tool), *session.posargs),
                env={"PATH": path},
                silent=True,
                external=True,
            )
            for tool in tools
        ]
    for result in found:
        sys.stdout.write(f"{result.result()}\n")


@nox.session(python=PYTHONS)
@nox.parametrize("backend", [nox.param(b, id=b) for b in backends()])
def tests(session: nox.Session, backend: str) -> None:
    """Run the tests, on each Python and backend, in Wasm and natively."""
    is_default = session.python == DEFAULT_PYTHON
    groups = ("test", "typing", "nox") if is_default else ("test",)
    install(session, *groups, backend=backend)
    matrix = [f"--backend={backend}", "--mode=wasm", "--mode=native"]
    if not is_default:
        matrix.append("--what-depends-on-python")
    # Threads that wait for each other by spinning are slow where others compute. Neighbours stay
    # with one worker, which has opened what they need, until another has nothing left.
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    xdist = (NUM_WORKERS, "--dist=worksteal")
    session.run("pytest", *xdist, *matrix, *session.posargs, env=env)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Run the tests with a report of what they do not reach; it takes half as long again."""
    install(session, "test")
    session.run("pytest", "--cov", *session.posargs)


@nox.session(default=False)
def slow(session: nox.Session) -> None:
    """Run the tests that take minutes, and those against another implementation of adapters."""
    install(session, "test", "peft")
    session.run("pytest", "-m", "slow", *session.posargs)
    session.run("pytest", "tests/inference/adapters")


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Let 100,000 events happen to servers in virtual time; ``PIE_CHAOS_SEED`` says where to begin."""
    install(session, "test")
    env = {"PIE_CHAOS_EVENTS": "100000", **os.environ}
    session.run("pytest", "tests/chaos", "-q", *session.posargs, env=env)


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Let a server run for 20 minutes under mixed load: ``nox -s soak -- --minutes 5``."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks.soak", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz for ten minutes, or ``PIE_FUZZ_SECONDS``; ``PIE_FUZZ_SEED`` says where to begin."""
    install(session, "test", "fuzz")
    env = {"PIE_FUZZ_SECONDS": "600", **os.environ}
    no_limit = "--override-ini=faulthandler_timeout=0"
    session.run("pytest", "tests/fuzz", "-q", no_limit, *session.posargs, env=env)
    session.run("python", "-m", "tests.fuzz.run_atheris", env=env)


@nox.session(default=False)
def dashboard(session: nox.Session) -> None:
    """Run the tests of the dashboard in Chromium, which PIE_BROWSER names; PIE_AXE is axe-core's file."""
    install(session, "test", "browser")
    session.run("pytest", "tests/dashboard", "-m", "slow or not slow", *session.posargs)


@nox.session(default=False)
def screenshots(session: nox.Session) -> None:
    """Write the pictures of the dashboard into docs/images/dashboard."""
    install(session, "test", "browser")
    session.run("python", "-m", "tests.dashboard.make_screenshots", *session.posargs)


@nox.session(default=False)
def gpu(session: nox.Session) -> None:
    """Run the tests that need a CUDA device."""
    install(session, "test", backend="flashinfer")
    session.run("pytest", "-m", "gpu", "--backend=flashinfer", *session.posargs)


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """Install the SDK alone, not editable, and look whether all of it is there."""
    session.install("--force-reinstall", "./inferlet_py")
    session.cd(session.create_tmp())
    look = (
        "import inferlet_py, pathlib; f = pathlib.Path(inferlet_py.__file__).parent;"
        "assert (f / 'py.typed').exists() and (f / 'wit' / 'world.wit').exists(), f"
    )
    session.run("python", "-I", "-c", look)


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """Build the documentation into site/; ``nox -s docs -- serve`` shows it."""
    session.install(*nox.project.dependency_groups(PYPROJECT, "docs"))
    session.run("python", "docs/api_reference.py")
    session.run(
        "mkdocs",
        *(session.posargs or ["build", "--strict"]),
        "--config-file=.mkdocs.yml",
    )


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run every command in the READMEs of the examples, on the model of PIE_MODEL, and their tests."""
    install(session, "test")
    tools = subprocess.Popen([sys.executable, "examples/tool_server.py"], cwd=ROOT)
    try:
        for readme in sorted(ROOT.glob("examples/*/README.md")):
            text = readme.read_text()
            for line in re.findall(r"^(?:\$ )?pie run (.+)$", text, re.M):
                session.run("pie", "run", *shlex.split(line))
    finally:
        tools.terminate()
        tools.wait()
    session.run("pytest", "tests/examples", "-m", "slow or not slow")


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Run a benchmark of the paper's evaluation: ``nox -s bench -- agents --model DIR``."""
    install(session, "bench")
    session.run("python", "-m", "benchmarks.run", *(session.posargs or ["--help"]))


@nox.session(default=False)
def evaluate(session: nox.Session) -> None:
    """Measure pie-tiny on held-out documents: ``nox -s evaluate -- --count 50``."""
    install(session)
    model = "pie_trio/models/pie_tiny"
    session.run("python", "-m", "training.evaluate", model, *session.posargs)
