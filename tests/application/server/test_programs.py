"""Programs over HTTP: uploaded, looked at, replaced, deleted, and refused."""

from __future__ import annotations

import io
import os
import resource
import stat
import zipfile
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.server.limits import ServerLimits
from tests.application.server.clients import archive_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from tests.application.server.conftest import OpenServer

HELLO = text_of("return name", parameters="name: str = 'you'")


async def test_an_upload_is_looked_at_and_kept(open_server: OpenServer) -> None:
    archive = archive_of({"app.py": HELLO, "lib/x.py": "", "README.md": "# Hello"})
    async with open_server() as served:
        put = await served.api.ask("PUT", "/v1/programs/hello", archive)
        assert put.status == 201
        assert put.json["outcome"] == "created"
        found = (await served.api.get("/v1/programs/hello")).json
        assert found["arguments"]["properties"] == {
            "name": {"type": "string", "default": "you"}
        }
        assert found["readme"] == "# Hello"
        assert found["modules"] == ["app.py", "lib/x.py"]
        assert found["bytes"] == len(archive)
        (listed,) = (await served.api.get("/v1/programs")).json["programs"]
        assert listed["sha256"] == found["sha256"]


async def test_the_same_again_changes_nothing_and_another_replaces(
    open_server: OpenServer, tmp_path: Path
) -> None:
    async with open_server() as served:
        ask, path = served.api.ask, "/v1/programs/hello"
        await ask("PUT", path, HELLO)
        (first,) = (tmp_path / "data/programs").iterdir()
        again = await ask("PUT", path, HELLO)
        assert (again.status, again.json["outcome"]) == (200, "unchanged")
        other = await ask("PUT", path, text_of("return 2"))
        assert (other.status, other.json["outcome"]) == (200, "replaced")
        assert (await served.api.run("hello"))["result"] == 2
        (second,) = (tmp_path / "data/programs").iterdir()
        assert second != first
        assert list((tmp_path / "data/uploads").iterdir()) == []


async def test_two_names_may_have_the_same_contents(
    open_server: OpenServer, tmp_path: Path
) -> None:
    async with open_server() as served:
        for name in ("one", "two"):
            await served.api.ask("PUT", f"/v1/programs/{name}", HELLO)
        assert (await served.api.ask("DELETE", "/v1/programs/one")).status == 200
        assert (await served.api.run("two"))["result"] == "you"
        assert (await served.api.ask("DELETE", "/v1/programs/two")).status == 200
        assert list((tmp_path / "data/programs").iterdir()) == []
        assert (await served.api.ask("DELETE", "/v1/programs/two")).status == 404
        assert (await served.api.get("/v1/programs/two")).status == 404


async def test_programs_that_come_with_the_server_lie_below_those_of_users(
    open_server: OpenServer, tmp_path: Path
) -> None:
    folder = tmp_path / "built_in/hello"
    folder.mkdir(parents=True)
    (folder / "app.py").write_bytes(text_of("return 'built in'"))
    (folder / "README.md").write_text("# Hello")
    async with open_server() as served:
        ask, path = served.api.ask, "/v1/programs/hello"
        found = (await served.api.get(path)).json
        assert (found["built_in"], found["readme"]) == (True, "# Hello")
        assert (await served.api.run("hello"))["result"] == "built in"
        await ask("PUT", path, text_of("return 'mine'"))
        assert (await served.api.run("hello"))["result"] == "mine"
        assert len((await served.api.get("/v1/programs")).json["programs"]) == 1
        await ask("DELETE", path)
        assert (await served.api.run("hello"))["result"] == "built in"
        refused = await ask("DELETE", path)
        assert refused.status == 404
        assert "comes with Pie" in refused.error["message"]


async def test_a_program_that_is_replaced_runs_on(open_server: OpenServer) -> None:
    async with open_server() as served:
        await served.api.deploy("job", "await send('ready')\nreturn await receive()")
        async with served.api.launch("job") as stream:
            name = (await stream.until("started"))["id"]
            await stream.until("message")
            await served.api.ask("DELETE", "/v1/programs/job")
            message = {"text": "on"}
            await served.api.ask("POST", f"/v1/instances/{name}/messages", message)
            assert (await stream.until("result"))["value"] == "on"


async def test_a_syntax_error_comes_back_with_the_authors_line(
    open_server: OpenServer, tmp_path: Path
) -> None:
    async with open_server() as served:
        answer = await served.api.ask("PUT", "/v1/programs/bad", b"x = 1\nx = (\n")
        assert answer.status == 422
        assert answer.error["kind"] == "SyntaxError"
        assert 'File "app.py", line 2' in answer.error["traceback"]
        assert list((tmp_path / "data/programs").iterdir()) == []
        assert list((tmp_path / "data/uploads").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"raise ValueError('at import')", "at import"),
        (b"x = 1", "inferlet"),
        (b"while True: pass", "to be imported"),
        (b"\xff\xfe\x00", "not Python text"),
        (b"# coding: punycode\n", "save it as UTF-8"),
        (b"", "inferlet"),
    ],
)
async def test_what_cannot_run_is_not_kept(
    open_server: OpenServer, text: bytes, words: str
) -> None:
    async with open_server(limits=ServerLimits(inspect_seconds=0.5)) as served:
        answer = await served.api.ask("PUT", "/v1/programs/bad", text)
        assert answer.status == 422
        assert words in str(answer.error)
        assert (await served.api.get("/v1/programs")).json == {"programs": []}


def link_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", HELLO)
        link = zipfile.ZipInfo("secret.py")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    return buffer.getvalue()


def twice_archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("app.py", HELLO)
        archive.writestr("./app.py", b"import os")
    return buffer.getvalue()


def lying_archive() -> bytes:
    """An archive whose directory says that a large file is small."""
    data = archive_of({"app.py": b"#" * 5_000_000})
    true, lie = (size.to_bytes(4, "little") for size in (5_000_000, 5))
    assert data.count(true) == 2
    return data.replace(true, lie)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "up": (lambda: archive_of({"../app.py": HELLO}), "outside of the archive"),
    "root": (lambda: archive_of({"app.py": HELLO, "/etc/x": ""}), "outside of the"),
    "backslash": (lambda: archive_of({"app.py": HELLO, "a\\b": ""}), "outside of the"),
    "link": (link_archive, "which is a link"),
    "twice": (twice_archive, "twice"),
    "bomb": (lambda: archive_of({"app.py": b"#" * (9 << 20)}), "too large"),
    "bombs": (
        lambda: archive_of({f"{i}.py": b"#" * (4 << 20) for i in range(3)}),
        "too large",
    ),
    "many": (
        lambda: archive_of({str(i): "" for i in range(10_001)}),
        "more than 10000 files",
    ),
    "lying": (lying_archive, "no zip archive that can be read"),
    "cut": (lambda: archive_of({"app.py": HELLO})[:-30], "no zip archive"),
    "empty": (lambda: b"PK\x05\x06" + bytes(18), "no Python modules"),
    "no-modules": (lambda: archive_of({"notes.txt": ""}), "no Python modules"),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_hostile_archive_is_refused(
    open_server: OpenServer, tmp_path: Path, kind: str
) -> None:
    make, words = HOSTILE[kind]
    async with open_server() as served:
        answer = await served.api.ask("PUT", "/v1/programs/bad", make())
        assert answer.status == 422
        assert words in answer.error["message"]
        assert list((tmp_path / "data/programs").iterdir()) == []


async def test_damage_anywhere_in_an_archive_is_an_answer(
    open_server: OpenServer,
) -> None:
    archive = archive_of({"app.py": HELLO, "README.md": "read me"})
    async with open_server() as served:
        for place in range(4, len(archive), 7):
            damaged = bytearray(archive)
            damaged[place] ^= 0xFF
            answer = await served.api.ask("PUT", "/v1/programs/bad", bytes(damaged))
            assert answer.status in (200, 201, 422), answer.body


@pytest.mark.parametrize(
    "name", [".hidden", "a%2Fb", "a%20b", "x" * 65, "%C3%A9", "..%2f..%2fx", "-x"]
)
async def test_a_bad_name_is_refused(open_server: OpenServer, name: str) -> None:
    async with open_server() as served:
        answer = await served.api.ask("PUT", f"/v1/programs/{name}", HELLO)
        assert answer.status in (404, 422)
        assert (await served.api.get("/v1/programs")).json == {"programs": []}


async def test_a_body_that_is_too_large_is_refused_while_it_comes(
    open_server: OpenServer, tmp_path: Path
) -> None:
    limits = ServerLimits(max_upload_bytes=1000)
    async with open_server(limits=limits) as served:
        answer = await served.api.ask("PUT", "/v1/programs/big", b"#" * 1001)
        assert answer.status == 413
        chunk = b"3E8\r\n" + b"#" * 1000 + b"\r\n"
        async with await served.web.connect() as client:
            head = b"PUT /v1/programs/big HTTP/1.1\r\nHost: x\r\n"
            await client.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + 2 * chunk)
            assert (await client.read_response("PUT")).status == 413
        assert list((tmp_path / "data/uploads").iterdir()) == []


async def test_an_upload_that_breaks_off_leaves_nothing(
    open_server: OpenServer, tmp_path: Path
) -> None:
    async with open_server() as served:
        async with await served.web.connect() as client:
            head = (
                b"PUT /v1/programs/half HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n"
            )
            await client.send(head + b"\r\nx = 1")
            await client.leave("fin")
        await served.api.ask("PUT", "/v1/programs/whole", HELLO)
        await served.web.check_alive()
        names = [one.name for one in served.programs.rows(served.owner)]
        assert names == ["whole"]
    assert list((tmp_path / "data/uploads").iterdir()) == []


async def test_an_owner_may_have_so_many(open_server: OpenServer) -> None:
    async with open_server(limits=ServerLimits(max_programs=1)) as served:
        assert (await served.api.ask("PUT", "/v1/programs/one", HELLO)).status == 201
        answer = await served.api.ask("PUT", "/v1/programs/two", HELLO)
        assert answer.status == 429
        replaced = await served.api.ask("PUT", "/v1/programs/one", text_of("pass"))
        assert replaced.status == 200


@contextmanager
def file_limit(num_bytes: int) -> Generator[None]:
    """Let no file of this process grow beyond this size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 1000, 30_000])
async def test_a_full_disk_is_an_answer_and_changes_nothing(
    open_server: OpenServer, tmp_path: Path, limit: int
) -> None:
    noise = "#" + os.urandom(10_000).hex()
    async with open_server() as served:
        await served.api.ask("PUT", "/v1/programs/hello", HELLO)
        for i in range(3):  # the log of the database has some size already
            await served.api.deploy(f"p{i}", "pass")
        before = sorted((tmp_path / "data/programs").iterdir())
        with file_limit(limit):
            answer = await served.api.ask(
                "PUT", "/v1/programs/hello", text_of(f"pass\n{noise}")
            )
        assert answer.status == 507, answer.body
        assert "no room" in answer.error["message"]
        assert (await served.api.run("hello"))["result"] == "you"
        assert sorted((tmp_path / "data/programs").iterdir()) == before
        assert list((tmp_path / "data/uploads").iterdir()) == []
        retried = await served.api.ask("PUT", "/v1/programs/hello", text_of("return 3"))
        assert retried.status == 200
        assert (await served.api.run("hello"))["result"] == 3
