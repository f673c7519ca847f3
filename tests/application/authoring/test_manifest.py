"""What a program says of itself: every key checked, and the nearest valid name told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pie_trio.application.authoring.manifest import (
    Limits,
    Manifest,
    parse_block,
    parse_pyproject,
)
from pie_trio.application.services import Grants
from pie_trio.config import InstanceLimits
from pie_trio.errors import ManifestError

WHOLE = """
[project]
name = "searcher"
description = "Searches."
dependencies = ["jinja2>=3"]

[tool.pie]
entry = "main.py"
publish = ["chat"]

[tool.pie.grants]
http = ["api.example.com", "*.example.org:8443"]
logits = true

[tool.pie.limits]
memory_mib = 128
wall_seconds = 60
pages = 100
"""

BLOCK = '''"""A program."""

# /// pie
# name = "searcher"
#
# [grants]
# http = ["api.example.com"]
# ///

x = 1
'''


def test_a_pyproject_says_everything() -> None:
    assert parse_pyproject(WHOLE) == Manifest(
        name="searcher",
        description="Searches.",
        entry="main.py",
        grants=Grants(logits=True, http=("api.example.com", "*.example.org:8443")),
        limits=Limits(memory_mib=128, wall_seconds=60.0, pages=100),
        dependencies=("jinja2>=3",),
        publish=("chat",),
    )


def test_a_pyproject_of_something_else_says_nothing() -> None:
    assert parse_pyproject("[project]\nname = 'x'\n") is None
    assert parse_pyproject("") is None


def test_a_block_in_a_module_says_it_too() -> None:
    expected = Manifest(name="searcher", grants=Grants(http=("api.example.com",)))
    assert parse_block(BLOCK, "app.py") == expected
    script = (
        "# /// script\n# dependencies = ['rich']\n# [tool.pie]\n# name = 'y'\n# ///\n"
    )
    assert parse_block(script, "app.py") == Manifest(name="y", dependencies=("rich",))
    both = parse_block(script + "\n" + BLOCK, "app.py")
    assert both == replace(expected, dependencies=("rich",))
    assert parse_block("x = 1\n", "app.py") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tool.pie]\nnam = 'x'", "[tool.pie] has no key 'nam': did you mean 'name'?"),
        (
            "[tool.pie.grants]\nhtpp = []",
            "[tool.pie.grants] has no key 'htpp': did you",
        ),
        ("[tool.pie.limits]\nzzz = 1", "It takes memory_mib, wall_seconds, pages"),
        ("[tool.pie.limits]\npages = 0", "limits] pages: expected a number of 1 or"),
        ("[tool.pie.limits]\npages = true", "expected a number of 1 or more, got True"),
        ("[tool.pie.limits]\nwall_seconds = inf", "a positive number of seconds"),
        ("[tool.pie.grants]\nhttp = 'x'", "grants] http: expected a list of texts"),
        ("[tool.pie.grants]\nhttp = ['a b']", "grants] http: "),
        ("[tool.pie.grants]\nlogits = 1", "grants] logits: expected true or false"),
        ("[tool.pie]\nname = 'a/b'", "[tool.pie] name: expected letters"),
        ("[tool.pie]\nentry = '../x.py'", "[tool.pie] entry: expected the path"),
        (
            "[tool.pie]\npublish = ['chats']",
            "publish: expected some of chat, completions, embeddings, tool, got 'chats'",
        ),
        ("[tool.pie]\npublish = 'chat'", "publish: expected a list of texts"),
        ("[tool]\npie = 1", "[tool.pie]: expected a table, got 1"),
        ("[tool.pie]\n[project]\ndependencies = 1", "[project] dependencies: expected"),
        ("[tool.pie", "p.toml is not TOML"),
    ],
)
def test_a_wrong_key_or_value_is_named(text: str, message: str) -> None:
    with pytest.raises(ManifestError) as error:
        parse_pyproject(text, "p.toml")
    assert message in str(error.value)
    assert str(error.value).startswith("p.toml")


def test_two_blocks_of_a_kind_are_refused() -> None:
    with pytest.raises(ManifestError, match=r"app\.py has two blocks"):
        parse_block(BLOCK + BLOCK, "app.py")


def test_the_lower_limit_counts() -> None:
    ceiling = InstanceLimits(memory_bytes=200 << 20, wall_seconds=30, max_pages=1000)
    own = Limits(memory_mib=128, wall_seconds=60.0, pages=2000, queues=3)
    assert own.below(ceiling) == replace(ceiling, memory_bytes=128 << 20, max_queues=3)
    assert Limits(wall_seconds=5).below(InstanceLimits()).wall_seconds == 5


def test_who_names_grants_has_these_and_no_others() -> None:
    offered = Grants(logits=True, publish=True, topics=True, http=("a.com",))
    assert Manifest().granted(offered) == offered
    own = Manifest(grants=Grants(logits=True, spawn=False))
    assert own.granted(offered) == Grants(logits=True, spawn=False, http=("a.com",))
    assert not own.granted(replace(offered, logits=False)).logits
