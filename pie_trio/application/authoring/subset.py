"""The part of Python that a program has in the sandbox: what it may import, what is refused.

``subset.json`` says it, made from the language component itself by ``docs/python_subset.py``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["REFUSALS", "Refusal", "Subset", "load_subset", "make_probe"]

FILES = "keep text in arguments, in messages or in `store`"
NETWORK = "use http_get, http_post or http_request"
TASKS = "open_nursery() runs branches side by side"
PROCESSES = "use spawn() for another inferlet, or http_request for other services"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A call that fails in the sandbox.

    Attributes:
        name: What is called.
        what: What it is about, in a word.
        probe: A statement that makes the call.
        instead: What to do.
        event: The audit event by which native mode notices it; empty where it does not.
    """

    name: str
    what: str
    probe: str
    instead: str
    event: str = ""


REFUSALS: Sequence[Refusal] = (
    Refusal(
        "threading.Thread",
        "threads",
        "import threading; threading.Thread(target=print).start()",
        TASKS,
        "_thread.start_new_thread",
    ),
    Refusal(
        "_thread.start_new_thread",
        "threads",
        "import _thread; _thread.start_new_thread(print, ())",
        TASKS,
        "_thread.start_new_thread",
    ),
    Refusal("open", "files", "open('notes.txt')", FILES, "open"),
    Refusal("os.open", "files", "import os; os.open('x', os.O_RDONLY)", FILES, "open"),
    Refusal(
        "os.listdir", "files", "import os; os.listdir('folder')", FILES, "os.listdir"
    ),
    Refusal(
        "os.scandir", "files", "import os; os.scandir('folder')", FILES, "os.scandir"
    ),
    Refusal("os.mkdir", "files", "import os; os.mkdir('folder')", FILES, "os.mkdir"),
    Refusal("os.remove", "files", "import os; os.remove('x')", FILES, "os.remove"),
    Refusal("os.rename", "files", "import os; os.rename('x', 'y')", FILES, "os.rename"),
    *(
        Refusal(
            f"pathlib.Path.{name}",
            "files",
            f"from pathlib import Path; Path('x').{name}({argument})",
            FILES,
            event,
        )
        for name, argument, event in (
            ("open", "", "open"),
            ("read_text", "", "open"),
            ("read_bytes", "", "open"),
            ("write_text", "'x'", "open"),
            ("write_bytes", "b'x'", "open"),
            ("mkdir", "", "os.mkdir"),
            ("unlink", "", "os.remove"),
        )
    ),
    Refusal(
        "tempfile.TemporaryFile",
        "files",
        "import tempfile; tempfile.TemporaryFile()",
        FILES,
    ),
    Refusal(
        "tempfile.TemporaryDirectory",
        "files",
        "import tempfile; tempfile.TemporaryDirectory()",
        FILES,
    ),
    Refusal(
        "socket.socket",
        "sockets",
        "import socket; socket.socket()",
        NETWORK,
        "socket.__new__",
    ),
    Refusal(
        "socket.create_connection",
        "sockets",
        "import socket; socket.create_connection(('example.com', 80))",
        NETWORK,
        "socket.getaddrinfo",
    ),
    Refusal(
        "socket.getaddrinfo",
        "sockets",
        "import socket; socket.getaddrinfo('example.com', 80)",
        NETWORK,
        "socket.getaddrinfo",
    ),
    *(
        Refusal(
            f"subprocess.{name}",
            "processes",
            f"import subprocess; subprocess.{name}(['ls'])",
            PROCESSES,
            "subprocess.Popen",
        )
        for name in ("run", "Popen", "call", "check_call", "check_output")
    ),
    Refusal(
        "os.system", "processes", "import os; os.system('ls')", PROCESSES, "os.system"
    ),
    Refusal("os.popen", "processes", "import os; os.popen('ls')", PROCESSES),
    Refusal("os.fork", "processes", "import os; os.fork()", PROCESSES, "os.fork"),
    Refusal(
        "input", "the terminal", "input()", "use `await receive()`", "builtins.input"
    ),
)


@dataclass(frozen=True, slots=True)
class Subset:
    """What the language component can do.

    Attributes:
        python: Its version.
        modules: What can be imported of the standard library, by full name.
        errors: By name of the call: the class of the error and its arguments.
    """

    python: str
    modules: frozenset[str]
    errors: Mapping[str, tuple[str, Sequence[Any]]]


def load_subset() -> Subset:
    """Read what the language component can do."""
    text = files("pie_trio.application.authoring").joinpath("subset.json").read_text()
    found = json.loads(text)
    errors = {name: (kind, args) for name, (kind, args) in found["errors"].items()}
    return Subset(found["python"], frozenset(found["modules"]), errors)


def make_probe() -> str:
    """Return a program that finds out what the subset is, and returns it."""
    probes = {refusal.name: refusal.probe for refusal in REFUSALS}
    return PROBE.format(probes=probes)


PROBE = """
import sys

_FOUND = sorted(sys.modules)

from inferlet_py import inferlet

PROBES = {probes!r}
PRIVATE = ("inferlet_", "wit_world", "componentize_py", "pie_", "__main__", "app")


@inferlet
async def main() -> dict[str, object]:
    errors = {{}}
    for name, probe in PROBES.items():
        try:
            exec(probe, {{}})
        except Exception as error:
            arguments = [a for a in error.args if isinstance(a, (int, str))]
            if isinstance(error, OSError) and len(arguments) > 2:
                arguments = arguments[:2]
            errors[name] = [type(error).__name__, arguments]
    modules = [name for name in _FOUND if not name.startswith(PRIVATE)]
    return {{
        "python": sys.version.split()[0],
        "modules": [n for n in modules if not n.split(".")[0].startswith("_sysconfig")],
        "errors": errors,
    }}
"""
