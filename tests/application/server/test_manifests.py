"""What programs say of themselves holds on a server too; and how they are packed for it."""

from __future__ import annotations

import zipfile
from io import BytesIO
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.authoring.manifest import Manifest
from pie_trio.application.server.manifests import grants_on_server, read_with_manifest
from pie_trio.application.services import Grants
from pie_trio.client.packing import pack_program
from tests.application.server.clients import archive_of, text_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.application.server.conftest import OpenServer

PYPROJECT = """
[tool.pie]
entry = "main.py"
grants.http = ["api.example.org"]
limits.wall_seconds = 0.2
"""


async def test_the_limits_of_a_program_hold(open_server: OpenServer) -> None:
    archive = archive_of(
        {
            "main.py": text_of("await sleep(3600)"),
            "x.py": "",
            "pyproject.toml": PYPROJECT,
        }
    )
    async with open_server() as served:
        answer = await served.api.ask("PUT", "/v1/programs/slow", archive)
        assert answer.status == 201, answer.body
        done = await served.api.run("slow")
    assert done["state"] == "failed"
    assert done["error"]["code"] == "timed-out"
    assert "0.2 s" in done["error"]["message"]


async def test_a_block_in_a_source_holds_as_well(open_server: OpenServer) -> None:
    block = b"# /// pie\n# limits.wall_seconds = 0.2\n# ///\n"
    source = (block + text_of("await sleep(3600)")).decode()
    async with open_server() as served:
        asked: dict[str, object] = {"program": {"source": source}}
        answer = await served.api.ask(
            "POST", "/v1/instances", asked, accept="application/json"
        )
    assert answer.json["error"]["code"] == "timed-out"


async def test_a_program_without_a_grant_does_not_get_it(
    open_server: OpenServer,
) -> None:
    body = text_of("async with spawn(): pass")
    block = b"# /// pie\n# grants.spawn = false\n# ///\n"
    async with open_server() as served:
        await served.api.ask("PUT", "/v1/programs/alone", block + body)
        done = await served.api.run("alone")
    assert done["error"]["kind"] == "ForbiddenError", done


@pytest.mark.parametrize(
    ("named", "offered", "granted"),
    [
        (("a.org",), (), ()),
        (("a.org",), ("a.org", "b.org"), ("a.org",)),
        (("a.org", "local://db"), ("*",), ("a.org",)),
        (("local://db",), ("local://db",), ("local://db",)),
        (("*",), ("a.org",), ()),
        ((), ("*",), ()),
    ],
)
def test_hosts_are_those_that_both_sides_name(
    named: tuple[str, ...], offered: tuple[str, ...], granted: tuple[str, ...]
) -> None:
    manifest = Manifest(grants=Grants(http=named))
    assert grants_on_server(manifest, Grants(http=offered)).http == granted


@pytest.mark.parametrize("is_trusted", [False, True])
def test_what_comes_with_the_server_has_what_it_asks_for_but_hosts(
    is_trusted: bool,
) -> None:
    asking = Manifest(grants=Grants(logits=True, http=("a.org",)))
    granted = grants_on_server(asking, Grants(), is_trusted=is_trusted)
    assert granted == Grants(logits=is_trusted)


async def test_a_refusal_names_the_grant_and_the_flag(open_server: OpenServer) -> None:
    body = text_of("async with spawn(): pass")
    async with open_server(grants=Grants(spawn=False)) as served:
        await served.api.ask("PUT", "/v1/programs/alone", body)
        done = await served.api.run("alone")
    assert "the grant `spawn`" in done["error"]["message"], done
    assert "--allow-spawn on" in done["error"]["message"]


def test_who_says_nothing_gets_what_the_server_offers() -> None:
    offered = Grants(logits=True, http=("*",))
    assert grants_on_server(Manifest(), offered) == offered


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"app.py": "", "pyproject.toml": "["}, "pyproject.toml"),
        ({"app.py": "", "pyproject.toml": "[tool.pie]\nx = 1"}, "x"),
        ({"app.py": "", "pyproject.toml": PYPROJECT}, "main.py"),
        ({"app.py": "", "pyproject.toml": "#" * 300_000}, "at most"),
        (
            {
                "main.py": "# /// pie\n# name = 'x'\n# ///\n",
                "pyproject.toml": PYPROJECT,
            },
            "keep one",
        ),
    ],
    ids=["no-toml", "unknown", "no-entry", "large", "both"],
)
async def test_a_wrong_manifest_is_refused(
    open_server: OpenServer, files: dict[str, str], words: str
) -> None:
    async with open_server() as served:
        answer = await served.api.ask("PUT", "/v1/programs/bad", archive_of(files))
        assert answer.status == 422
        assert words in answer.error["message"]


def names_in(data: bytes) -> list[str]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return archive.namelist()


def test_a_folder_is_packed_with_its_manifest_the_same_each_time(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "agent"
    (folder / "lib").mkdir(parents=True)
    (folder / "main.py").write_bytes("# coding: latin-1\nx = 'é'".encode("latin-1"))
    for name in ("lib/tools.py", "README.md", "notes.txt"):
        (folder / name).write_text("")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    name, data = pack_program(folder)
    assert name == "agent"
    assert names_in(data) == ["README.md", "lib/tools.py", "main.py", "pyproject.toml"]
    assert pack_program(folder) == (name, data)
    program, manifest = read_with_manifest(name, data)
    assert program.entry == "main.py"
    assert "é" in program.modules["main.py"]
    assert manifest.limits.wall_seconds == 0.2
    (tmp_path / "agent.zip").write_bytes(data)
    assert pack_program(tmp_path / "agent.zip") == (name, data)


def test_a_lone_module_keeps_its_name_and_takes_its_manifest_along(
    tmp_path: Path,
) -> None:
    (tmp_path / "one.py").write_text("x = 1")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'")
    (tmp_path / "README.md").write_text("of something else")
    assert names_in(pack_program(tmp_path / "one.py")[1]) == ["one.py"]
    (tmp_path / "pyproject.toml").write_text("[tool.pie]\nname = 'named'")
    name, data = pack_program(tmp_path / "one.py")
    assert (name, names_in(data)) == ("named", ["one.py", "pyproject.toml"])
    (tmp_path / "one.py").write_text("# /// pie\n# name = 'block'\n# ///\n")
    name, data = pack_program(tmp_path / "one.py")
    assert (name, names_in(data)) == ("block", ["one.py"])
