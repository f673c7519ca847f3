"""What comes with a server is compiled before it is asked for, and nobody is refused for it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.server.preparing import compile_built_in
from tests.application.server.clients import text_of

if TYPE_CHECKING:
    from pathlib import Path

    from pie_trio.application.lifecycle.instances import Launcher
    from pie_trio.application.server.program_store import ProgramStore
    from tests.application.server.conftest import OpenServer


@pytest.fixture(autouse=True)
def built_in(tmp_path: Path) -> Path:
    """The folder of what comes with the server: two programs."""
    folder = tmp_path / "built_in"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "app.py").write_bytes(text_of(f"return {name!r}"))
    return folder


def compiled(launcher: Launcher, programs: ProgramStore) -> list[str]:
    known = launcher._code
    return [one.name for one in programs.built_in if one.source.digest in known]


async def test_all_that_comes_with_the_server_is_compiled(
    open_server: OpenServer,
) -> None:
    async with open_server() as served:
        assert not compiled(served.launcher, served.programs)
        await compile_built_in(served.launcher, served.programs)
        assert compiled(served.launcher, served.programs) == ["one", "two"]
        assert (await served.api.run("two"))["result"] == "two"


async def test_the_last_place_is_left_to_clients(open_server: OpenServer) -> None:
    async with open_server(max_instances=1) as served:
        await compile_built_in(served.launcher, served.programs)
        assert not compiled(served.launcher, served.programs)
        assert (await served.api.run("one"))["result"] == "one"


async def test_one_that_cannot_be_compiled_keeps_no_other_from_it(
    open_server: OpenServer, built_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (built_in / "one" / "app.py").write_text("x = (\n")
    async with open_server() as served:
        with caplog.at_level(logging.ERROR):
            await compile_built_in(served.launcher, served.programs)
        assert compiled(served.launcher, served.programs) == ["two"]
    assert "one, which comes with Pie" in caplog.text
