"""``/v1/adapters``: from a directory of the machine, and sent; by whom; and what is refused."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import trio

from pie_trio.application.server.limits import ServerLimits
from tests.application.server.clients import archive_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.application.server.conftest import OpenServer, Served

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FILES = {CONFIG: "{}", WEIGHTS: "weights"}
USES = (
    "async with Context(adapter='poet') as ctx:\n"
    "    await ctx.fill('x')\n"
    "    await ctx.forward()\n"
    "    return await ctx.generate(max_tokens=3, stop_tokens=[]).tokens()"
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An adapter; the fake engine wants no more than its files."""
    path = tmp_path / "poet"
    path.mkdir()
    for name, text in FILES.items():
        (path / name).write_text(text)
    return path


async def names(served: Served) -> list[str]:
    found = (await served.api.get("/v1/adapters")).json["adapters"]
    return [adapter["name"] for adapter in found]


async def load(served: Served, directory: object, name: str = "poet") -> Any:
    asked = {"directory": str(directory)}
    return await served.api.ask(
        *("PUT", f"/v1/adapters/{name}", asked), content_type="application/json"
    )


def are_there(directory: Path) -> bool:
    return all((directory / name).exists() for name in FILES)


def kept(served: Served) -> list[Path]:
    return list((served.data / "adapters").iterdir())


async def test_an_adapter_of_the_machine_is_loaded_used_and_dropped(
    open_server: OpenServer, directory: Path
) -> None:
    async with open_server() as served:
        answer = await load(served, directory)
        assert answer.status == 201, answer.body
        (found,) = answer.json["adapters"]
        assert (found["name"], found["loaded_by"]) == ("poet", "local")
        assert found["model"] in served.launcher.models
        await served.api.deploy("uses", USES)
        assert (await served.api.run("uses"))["state"] == "succeeded"
        answer = await served.api.ask("DELETE", "/v1/adapters/poet")
        assert answer.status == 200
        assert await names(served) == []
        assert (await served.api.run("uses"))["state"] == "failed"
        assert are_there(directory)


@pytest.mark.parametrize("base", ["", "some/where/"])
async def test_an_adapter_is_sent_as_an_archive_and_its_files_go_with_it(
    open_server: OpenServer, base: str
) -> None:
    archive = archive_of(
        {base + name: text for name, text in FILES.items()} | {"x": ""}
    )
    async with open_server() as served:
        answer = await served.api.ask("PUT", "/v1/adapters/team/poet", archive)
        assert answer.status == 201, answer.body
        assert await names(served) == ["team/poet"]
        (folder,) = kept(served)
        assert {path.name: path.read_text() for path in folder.iterdir()} == FILES
        answer = await served.api.ask("DELETE", "/v1/adapters/team/poet")
        assert answer.status == 200
        assert kept(served) == []


def encrypted() -> bytes:
    data = bytearray(archive_of(FILES))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            data[start + offset] |= 1
            start += 4
    return bytes(data)


def bomb() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(CONFIG, "{}")
        archive.writestr(WEIGHTS, b"0" * 20_000)
    return buffer.getvalue()


REFUSED = {
    "nothing": (b"", 422, "no zip archive"),
    "no archive": (b"hello", 422, "no zip archive"),
    "cut": (archive_of(FILES)[:-9], 422, "no zip archive"),
    "encrypted": (encrypted(), 422, "encrypted"),
    "empty": (archive_of({}), 422, "0 files adapter_config.json"),
    "two": (archive_of({CONFIG: "", f"x/{CONFIG}": ""}), 422, "2 files"),
    "no weights": (archive_of({CONFIG: "{}"}), 422, f"no {WEIGHTS}"),
    "weights elsewhere": (
        archive_of({f"a/{CONFIG}": "", WEIGHTS: ""}),
        422,
        f"no a/{WEIGHTS}",
    ),
    "large unpacked": (bomb(), 413, "at most 10000 bytes"),
    "large": (b"0" * 10_001, 413, "at most 10000 bytes"),
    "far too large": (b"0" * 20_000, 413, "10001"),
}


@pytest.mark.parametrize(("body", "status", "words"), REFUSED.values(), ids=REFUSED)
async def test_what_is_no_adapter_is_refused_and_leaves_nothing(
    open_server: OpenServer, body: bytes, status: int, words: str
) -> None:
    limits = ServerLimits(max_adapter_bytes=10_000)
    async with open_server(limits=limits) as served:
        answer = await served.api.ask("PUT", "/v1/adapters/poet", body)
        assert (answer.status, words in answer.error["message"]) == (status, True), (
            answer.error
        )
        assert kept(served) == list((served.data / "uploads").iterdir()) == []
        assert (
            await served.api.ask("PUT", "/v1/adapters/poet", archive_of(FILES))
        ).status == 201


async def test_names_and_models_and_directories_that_cannot_be_had(
    open_server: OpenServer, directory: Path, tmp_path: Path
) -> None:
    async with open_server() as served:
        assert (await load(served, directory)).status == 201
        archive = archive_of(FILES | {WEIGHTS: "others"})
        for asked, status, words in (
            (await load(served, directory), 422, "an adapter poet already"),
            (await load(served, tmp_path / "x", "y"), 422, "an adapter is a directory"),
            (await load(served, "here", "y"), 422, "absolute path"),
            (await load(served, directory, "%20"), 422, "the name of an adapter"),
            (await load(served, directory, "y?model=z"), 404, "no model 'z'"),
            (await served.api.ask("DELETE", "/v1/adapters/y"), 404, "it has poet"),
            (await served.api.ask("PUT", "/v1/adapters/poet", archive), 422, "already"),
        ):
            assert (asked.status, words in asked.error["message"]) == (status, True), (
                asked.error
            )
        assert (await served.api.ask("DELETE", "/v1/adapters/poet")).status == 200
        asked = await served.api.ask("PUT", "/v1/adapters/poet", archive)
        assert "other files before" in asked.error["message"]
        assert kept(served) == []


async def test_an_adapter_in_use_is_not_dropped(
    open_server: OpenServer, directory: Path
) -> None:
    body = (
        "async with Context(adapter='poet') as ctx:\n"
        "    await ctx.fill('x')\n"
        "    async for chunk in ctx.generate(max_tokens=10**4, stop_tokens=[]):\n"
        "        await send('a token')"
    )
    async with open_server() as served:
        await load(served, directory)
        await served.api.deploy("uses", body)
        async with served.api.launch("uses") as stream:
            await stream.until("message")
            answer = await served.api.ask("DELETE", "/v1/adapters/poet")
            assert (answer.status, "in use" in answer.error["message"]) == (422, True)
        with trio.fail_after(30):
            await served.registry.drain(30)
        assert (await served.api.ask("DELETE", "/v1/adapters/poet")).status == 200


async def test_users_send_adapters_and_admins_load_directories(
    open_server: OpenServer, directory: Path
) -> None:
    async with open_server(has_keys=True) as served:
        ann, bob = served.user("ann"), served.user("bob")
        admin = served.user("root", "admin")
        asked, kind = (
            {"directory": str(directory)},
            {"content_type": "application/json"},
        )
        answer = await ann.ask("PUT", "/v1/adapters/poet", asked, **kind)
        assert (answer.status, "scope admin" in answer.error["message"]) == (403, True)
        assert (
            await admin.ask("PUT", "/v1/adapters/poet", asked, **kind)
        ).status == 201
        archive = archive_of(FILES)
        assert (await ann.ask("PUT", "/v1/adapters/hers", archive)).status == 201
        launcher = served.user("eve", "launch")
        assert (await launcher.ask("PUT", "/v1/adapters/x", archive)).status == 403
        for name in ("poet", "hers"):
            answer = await bob.ask("DELETE", f"/v1/adapters/{name}")
            assert (answer.status, "bob" in answer.error["message"]) == (403, True)
        assert (await ann.ask("DELETE", "/v1/adapters/hers")).status == 200
        assert (await admin.ask("DELETE", "/v1/adapters/poet")).status == 200
        assert (await served.api.get("/v1/adapters")).status == 401
