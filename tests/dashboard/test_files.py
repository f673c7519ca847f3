"""The dashboard without a browser: how its files are served, and what they may refer to."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from pie_trio.application.dashboard.files import read_static_files
from pie_trio.application.dashboard.routes import HEADERS, add_dashboard
from pie_trio.application.web import make_app
from tests.application.web.servers import running

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tests.application.web.clients import Response
    from tests.application.web.servers import Running

FILES = read_static_files()
SCRIPTS = sorted(name for name in FILES if name.endswith(".js"))


@pytest.fixture
async def server() -> AsyncGenerator[Running]:
    """A server of nothing but the dashboard."""
    app = make_app("test")
    add_dashboard(app, is_open=lambda view: view)
    async with running(app) as server:
        yield server


async def get(server: Running, path: str, headers: str = "") -> Response:
    async with await server.connect() as client:
        text = f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"
        await client.send(text.encode())
        return await client.read_response()


async def test_the_page_and_all_that_it_loads_are_there(server: Running) -> None:
    page = (await get(server, "/")).body.decode()
    loaded = re.findall(r'(?:src|href)="(/[^"#]*)"', page)
    assert len(loaded) >= 4
    for path in loaded:
        assert (await get(server, path)).status == 200, path


async def test_every_file_has_its_type_and_may_not_be_framed(server: Running) -> None:
    types = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    for name in FILES:
        answer = await get(server, f"/dashboard/{name}")
        wanted = types.get(name.rpartition(".")[2], "image/svg+xml")
        assert answer.headers["content-type"].startswith(wanted)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


async def test_what_a_browser_has_is_not_sent_again(server: Running) -> None:
    first = await get(server, "/")
    assert first.headers["cache-control"] == "no-cache"
    tag = f"If-None-Match: {first.headers['etag']}\r\n"
    again = await get(server, "/", tag)
    assert (again.status, again.body) == (304, b"")
    other = await get(server, "/dashboard/style.css", tag)
    assert other.status == 200


@pytest.mark.parametrize(
    "name", ["nothing.js", "..%2froutes.py", "%2e%2e/files.py", ""]
)
async def test_nothing_else_is_handed_out(server: Running, name: str) -> None:
    assert (await get(server, f"/dashboard/{name}")).status == 404


def test_scripts_and_styles_come_from_the_server_alone() -> None:
    policy = HEADERS["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert "*" not in policy
    for name, file in FILES.items():
        text = file.data.decode()
        loads = re.findall(
            r"""(?:import|url\(|src=|href=)\s*["']?(https?:[^"')\s]+)""", text
        )
        assert not loads, f"{name} loads {loads}"
        assert "innerHTML" not in text.replace("no innerHTML", ""), name
        assert " style=" not in text, f"{name}: inline styles are refused"


@pytest.mark.parametrize("name", SCRIPTS)
def test_modules_import_what_there_is(name: str) -> None:
    text = FILES[name].data.decode()
    for names, module in re.findall(r"import \{([^}]+)\} from \"\./([^\"]+)\"", text):
        other = FILES[module].data.decode()
        for one in (part.strip() for part in names.split(",")):
            pattern = rf"export (?:async )?(?:const|class|function\*?) {one}\b"
            assert re.search(pattern, other), f"{module} exports no {one}"
            used = len(re.findall(rf"\b{one}\b", text))
            assert used > 1, f"{name} does not use {one}"


def test_every_file_in_the_folder_is_served() -> None:
    folder = files("pie_trio.application.dashboard") / "static"
    assert {path.name for path in folder.iterdir()} == set(FILES)
