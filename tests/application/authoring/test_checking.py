"""`pie check`: what lies outside of the sandbox is found by file and line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pie_trio.application.authoring.checking import check_project
from pie_trio.application.authoring.projects import load_project

if TYPE_CHECKING:
    from pathlib import Path


def check(folder: Path, text: str, **others: str) -> list[tuple[str, int, str, str]]:
    (folder / "app.py").write_text(text)
    for name, other in others.items():
        (folder / f"{name}.py").write_text(other)
    found = check_project(load_project(folder))
    return [(f.path, f.line, f.level, f.message) for f in found]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import asyncio", "cannot import asyncio: its event loop does not run here"),
        (
            "import requests",
            "cannot import requests: there are no sockets; use http_get",
        ),
        ("import concurrent.futures", "there are no threads; open_nursery()"),
        ("import sqlite3", "cannot import sqlite3: the sandbox does not have it"),
        ("import email.mime.text", "the sandbox has email without it"),
        ("import numpy", "it belongs to numpy, which has native code"),
        ("import pytest", "it belongs to pytest, which is not among the program's"),
        ("import no_such_module", "there is no such module here either"),
        ("import helper.inner", "there is no module helper.inner in the program"),
        ("import threading\nthreading.Thread()", "threading.Thread fails, since there"),
        (
            "from os import system as run\nrun('ls')",
            "os.system fails, since there are no",
        ),
        ("open('x')", "open fails, since there are no files: keep text in"),
        ("from pathlib import Path\nPath('x').read_text()", "pathlib.Path.read_text"),
        ("def f(path): path.write_text('x')", "pathlib.Path.write_text fails"),
        ("import subprocess as s\ns.run(['ls'])", "subprocess.run fails"),
        ("import socket\nsocket.socket()", "socket.socket fails, since there are no"),
        ("input()", "input() fails, since there is no terminal: use `await receive()`"),
        ("x = (", "was never closed"),
    ],
)
def test_what_would_fail_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    found = check(tmp_path, text, helper="")
    assert [(path, line, level) for path, line, level, _ in found] == [
        ("app.py", text.count("\n") + 1, "error")
    ]
    assert message in found[0][3]


@pytest.mark.parametrize(
    "text",
    [
        "import json, re, tomllib, xml.etree.ElementTree, collections.abc, os.path",
        "from inferlet_py import Context\nimport helper\nfrom helper import x",
        "try:\n    import numpy\nexcept ImportError:\n    numpy = None",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy",
        "print('x')\nsocket = object()\nsocket.socket()",
    ],
)
def test_what_works_is_no_finding(tmp_path: Path, text: str) -> None:
    assert check(tmp_path, text, helper="x = 1") == []


def test_what_may_work_is_a_warning(tmp_path: Path) -> None:
    text = (
        "import time\ntime.sleep(1)\ntry:\n    open('x')\nexcept OSError:\n    pass\n"
    )
    found = check(tmp_path, text)
    assert [(line, level) for _, line, level, _ in found] == [
        (2, "warning"),
        (4, "warning"),
    ]
