"""Components among a server's programs: uploaded, compiled beside all else, launched, kept."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.authoring.building import build_component
from pie_trio.application.authoring.projects import load_project
from pie_trio.application.run.setup import prepare_component
from pie_trio.application.server import components
from pie_trio.application.server.limits import ServerLimits
from pie_trio.config import WasmConfig
from tests.application.server.clients import text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tests.application.server.clients import Api
    from tests.application.server.conftest import OpenServer

PATH = "/v1/programs/greet"
EMPTY = b"\0asm\x0d\x00\x01\x00"
"""A component with nothing in it."""
BODY = "await send(f'hello {who}')\nreturn who"
SPAWN = "async with spawn('greet', who='kid') as child:\n    return await child.wait()"
PYPROJECT = (
    "[project]\nname = 'greet'\n[tool.pie]\n[tool.pie.limits]\nwall_seconds = 9\n"
)


@pytest.fixture(scope="module")
def component(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What `pie build` makes of a program; it was compiled before, which takes long."""
    folder = tmp_path_factory.mktemp("greet")
    (folder / "app.py").write_bytes(text_of(BODY, parameters="who: str = 'you'"))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    target = folder / "greet.wasm"
    build_component(load_project(folder), target)
    prepare_component(WasmConfig(), target)
    return target.read_bytes()


@contextmanager
def held_compilation(monkeypatch: pytest.MonkeyPatch) -> Generator[Callable[[], None]]:
    """Let no component be compiled before the function that is yielded was called."""
    go_on, compile_it = threading.Event(), components._compile

    def wait_first(*args: Any) -> Any:
        go_on.wait()
        return compile_it(*args)

    monkeypatch.setattr(components, "_compile", wait_first)
    try:
        yield go_on.set
    finally:
        go_on.set()


async def until_done(api: Api) -> Any:
    with trio.fail_after(120):
        while (found := (await api.get(f"{PATH}?wait=1")).json)["state"] == "compiling":
            pass
    return found


async def test_a_component_is_compiled_and_launched(
    open_server: OpenServer, component: bytes
) -> None:
    async with open_server() as served:
        put = await served.api.ask("PUT", PATH, component)
        assert (put.status, put.json["outcome"], put.json["kind"]) == (
            *(201, "created"),
            "component",
        )
        found = await until_done(served.api)
        assert found["state"] == "ready"
        assert found["arguments"]["properties"]["who"]["default"] == "you"
        answer = await served.api.run("greet", who="ann")
        assert answer["messages"] == [{"text": "hello ann"}]
        assert answer["result"] == "ann"
        (listed,) = (await served.api.get("/v1/programs")).json["programs"]
        assert (listed["kind"], listed["state"]) == ("component", "ready")
        again = await served.api.ask("PUT", PATH, component)
        assert again.json["outcome"] == "unchanged"
        # Its manifest holds.
        program = await served.programs.find("greet", owner=served.owner)
        assert program.manifest.limits.wall_seconds == 9
        # Others launch it by name.
        await served.api.deploy("parent", SPAWN)
        assert (await served.api.run("parent"))["result"] == "kid"


async def test_a_component_outlives_the_server(
    open_server: OpenServer, component: bytes
) -> None:
    async with open_server() as served:
        await served.api.ask("PUT", PATH, component)
        await until_done(served.api)
    async with open_server() as served:
        assert (await served.api.run("greet"))["result"] == "you"
        assert (await served.api.ask("DELETE", PATH)).status == 200
        assert (await served.api.get(PATH)).status == 404


async def test_what_is_being_compiled_is_seen_and_waited_for(
    open_server: OpenServer, component: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server() as served:
        with held_compilation(monkeypatch) as go_on:
            put = await served.api.ask("PUT", PATH, component)
            assert put.json["state"] == "compiling"
            assert "arguments" not in put.json
            assert (await served.api.get(PATH)).json["state"] == "compiling"
            assert (await served.api.get("/readyz")).json["compiling"] == 1
            assert (await served.api.get("/v1/models")).status == 200
            results = list[Any]()

            async def run() -> None:
                results.append((await served.api.run("greet"))["result"])

            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                await trio.testing.wait_all_tasks_blocked()
                await served.api.deploy("other", "return 1")
                assert (await served.api.run("other"))["result"] == 1
                assert results == []
                go_on()
        assert results == ["you"]
        assert (await served.api.get("/readyz")).json["compiling"] == 0


async def test_a_launch_does_not_wait_for_ever(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server(limits=ServerLimits(compile_seconds=0.05)) as served:
        with held_compilation(monkeypatch):
            await served.api.ask("PUT", PATH, EMPTY)
            answer = await served.api.ask("POST", f"{PATH}/run")
            assert answer.status == 409
            assert answer.error["code"] == "busy"
            assert "is being compiled: try again" in answer.error["message"]
            await served.api.deploy("parent", SPAWN)
            error = (await served.api.run("parent"))["error"]
            assert "is being compiled" in error["message"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0asm\x01\x00\x00\x00", "greet is not a Wasm component"),
        (b"\0asm", "greet is not a Wasm component"),
        (EMPTY + b"\x00\xff", "greet is cut short"),
    ],
)
async def test_what_is_no_component_is_refused(
    open_server: OpenServer, tmp_path: Path, data: bytes, words: str
) -> None:
    async with open_server() as served:
        answer = await served.api.ask("PUT", PATH, data)
        assert answer.status == 422
        assert words in answer.error["message"]
        assert list((tmp_path / "data/programs").iterdir()) == []


@pytest.mark.parametrize(
    "data", [EMPTY, EMPTY + b"\x01\x04junk", EMPTY + b"\x00\x05\x04name"]
)
async def test_what_cannot_be_launched_has_failed_and_says_why(
    open_server: OpenServer, data: bytes
) -> None:
    async with open_server() as served:
        await served.api.ask("PUT", PATH, data)
        found = await until_done(served.api)
        assert found["state"] == "failed"
        assert found["message"]
        assert "/" not in found["message"].replace("pie:inferlet/", "")
        answer = await served.api.ask("POST", f"{PATH}/run")
        assert answer.status == 422
        assert found["message"] in answer.error["message"]
        assert (await served.api.get("/v1/models")).status == 200
        replaced = await served.api.ask("PUT", PATH, text_of("return 1"))
        assert (replaced.json["outcome"], replaced.json["state"]) == (
            "replaced",
            "ready",
        )
        assert (await served.api.run("greet"))["result"] == 1


async def test_what_has_failed_is_tried_again_when_it_comes_again(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_server() as served:
        await served.api.ask("PUT", PATH, EMPTY)
        assert (await until_done(served.api))["state"] == "failed"
        with held_compilation(monkeypatch):
            again = await served.api.ask("PUT", PATH, EMPTY)
            assert again.json["outcome"] == "unchanged"
            assert again.json["state"] == "compiling"
        assert (await until_done(served.api))["state"] == "failed"


async def test_components_have_limits_of_their_own(open_server: OpenServer) -> None:
    limits = ServerLimits(
        max_upload_bytes=100, max_component_bytes=1000, max_components=1
    )
    async with open_server(limits=limits) as served:
        padded = EMPTY + b"\x00\xe0\x01\x04name" + bytes(219)  # a section of 224 bytes
        assert (await served.api.ask("PUT", PATH, padded)).status == 201
        assert (await served.api.ask("PUT", PATH, EMPTY)).json["outcome"] == "replaced"
        other = await served.api.ask("PUT", "/v1/programs/other", EMPTY)
        assert other.status == 429
        assert "has 1 components" in other.error["message"]
        large = await served.api.ask("PUT", PATH, EMPTY + bytes(1000))
        assert large.status == 413
        text = await served.api.ask("PUT", PATH, b"#" * 101)
        assert text.status == 413


async def test_a_server_that_stops_does_not_wait_for_a_compilation(
    open_server: OpenServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_compilation(monkeypatch), trio.fail_after(30):
        async with open_server() as served:
            await served.api.ask("PUT", PATH, EMPTY)
