"""The dashboard in a browser, against a real server with pie-tiny."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="nox -s dashboard installs playwright"
)
from tests.dashboard.browsing import check_accessible, overflow  # noqa: E402
from tests.dashboard.serving import ROOT, Server, serving  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.dashboard.conftest import OpenPage

expect = playwright.expect
pytestmark = pytest.mark.slow

SECONDS = 30_000


@pytest.fixture
def writer(server: Server) -> Generator[str]:
    """An instance that has written and now waits for a message."""
    name = server.launch("writer", pieces=2, tokens=16)
    yield name
    server.ask("POST", f"/v1/instances/{name}/cancel")


def go(page: Page, server: Server, view: str = "") -> None:
    page.goto(f"{server.url}/#/{view}")
    expect(page.locator("#link")).to_have_text("Live", timeout=SECONDS)


def test_the_overview_shows_what_runs(
    open_it: OpenPage, server: Server, writer: str
) -> None:
    with open_it() as page:
        go(page, server)
        row = page.locator("#instances tr", has_text=writer)
        expect(row).to_contain_text("running")
        expect(row.locator("td.number").nth(1)).not_to_have_text("0", timeout=SECONDS)
        expect(page.locator("#pages .legend")).to_contain_text(writer)
        expect(page.locator(".tile").first).to_contain_text(re.compile(r"[1-9]\d* of"))
        label = page.locator("#pages canvas").get_attribute("aria-label") or ""
        assert re.search(r"KV pages: [1-9]\d* of 600 pages are used", label), label
        server.ask("POST", f"/v1/instances/{writer}/cancel")
        expect(row).to_contain_text("cancelled")
        expect(page.locator("#pages .legend")).not_to_contain_text(writer)
        expect(page.locator("#pages .legend")).not_to_contain_text("has ended")


def test_the_map_paints_the_pages_of_an_instance_in_its_colour(
    open_it: OpenPage, server: Server, writer: str
) -> None:
    with open_it() as page:
        go(page, server)
        row = page.locator("#instances tr", has_text=writer)
        expect(page.locator("#pages .legend")).to_contain_text(writer)
        colour = row.locator(".chip").evaluate(
            "e => getComputedStyle(e).backgroundColor"
        )
        painted = page.locator("#pages canvas").evaluate(
            """(canvas, colour) => {
              const wanted = colour.match(/\\d+/g).map(Number);
              const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
              let found = 0;
              for (let at = 0; at < data.length; at += 4)
                found += wanted.every((value, part) => data[at + part] === value);
              return found;
            }""",
            colour,
        )
        assert painted > 20


def test_batches_are_drawn_while_tokens_are_made(
    open_it: OpenPage, server: Server
) -> None:
    with open_it() as page:
        go(page, server)
        name = server.launch("writer", pieces=4, tokens=64)
        label = page.locator("#batches canvas")
        expect(label).to_have_attribute(
            "aria-label", re.compile(r": [1-9]\S* a second"), timeout=SECONDS
        )
        server.ask("POST", f"/v1/instances/{name}/cancel")


def test_an_instance_has_its_timeline_messages_and_log(
    open_it: OpenPage, server: Server, writer: str
) -> None:
    with open_it() as page:
        go(page, server, f"instances/{writer}")
        expect(page.locator("h1")).to_contain_text(writer)
        expect(page.locator("#log")).to_contain_text("writing 2 pieces")
        expect(page.locator("#timeline .under")).to_contain_text(
            re.compile(r"\d+ calls in \d+ batches"), timeout=SECONDS
        )
        page.click("text=Latest calls")
        expect(page.locator("#timeline tbody tr").first).to_contain_text("ok")
        page.fill(f"#message-{writer}", "hello there")
        page.press(f"#message-{writer}", "Enter")
        expect(page.locator("#messages")).to_contain_text("<hello there>")
        expect(page.locator("#log")).to_contain_text("got hello there")


def test_an_instance_is_cancelled_after_a_second_click(
    open_it: OpenPage, server: Server, writer: str
) -> None:
    with open_it() as page:
        go(page, server, f"instances/{writer}")
        page.click("text=Cancel instance")
        assert server.ask("GET", f"/v1/instances/{writer}")["state"] == "running"
        page.click("text=Really cancel?")
        expect(page.locator("h1 .badge")).to_have_text("cancelled")
        expect(page.locator("#messages .inline-form")).to_be_hidden()


def test_an_instance_that_is_not_there_says_so(
    open_it: OpenPage, server: Server
) -> None:
    with open_it(expected="404") as page:
        go(page, server, "instances/nobody-1")
        expect(page.locator("main")).to_contain_text("This instance is not there")


def test_a_form_launches_a_program_and_its_output_streams(
    open_it: OpenPage, server: Server
) -> None:
    with open_it() as page:
        go(page, server, "programs")
        page.click("#programs a:has-text('writer')")
        expect(page.locator("#readme h3")).to_have_text("Writer")
        expect(page.locator("#readme td").first).to_have_text("prompt")
        page.fill("#argument-pieces", "two")
        page.click("#launch button[type=submit]")
        expect(page.locator("#argument-pieces-error")).to_contain_text("whole number")
        expect(page.locator("#argument-pieces")).to_be_focused()
        page.fill("#argument-pieces", "2")
        page.click("#launch button[type=submit]")
        expect(page.locator("#output")).to_contain_text("writing 2 pieces")
        page.fill("#output input", "more")
        page.press("#output input", "Enter")
        expect(page.locator("#output")).to_contain_text("<more>")
        page.click("#launch button:has-text('Cancel')")
        expect(page.locator("#output .badge")).to_have_text("cancelled")
        expect(page.locator("#launch button[type=submit]")).to_be_enabled()


def test_a_program_that_fails_shows_its_traceback(
    open_it: OpenPage, server: Server
) -> None:
    text = b"from inferlet_py import *\n\n@inferlet\nasync def main(by: int):\n    return 1 / by\n"
    server.ask("PUT", "/v1/programs/dividing", text)
    with open_it() as page:
        go(page, server, "programs/dividing")
        page.click("#launch button[type=submit]")
        expect(page.locator("#argument-by-error")).to_contain_text("required")
        page.fill("#argument-by", "0")
        page.click("#launch button[type=submit]")
        expect(page.locator("#output pre")).to_contain_text("ZeroDivisionError")
        expect(page.locator("#output .badge")).to_have_text("failed")
        page.fill("#argument-by", "4")
        page.click("#launch button[type=submit]")
        expect(page.locator("#output .result")).to_have_text("0.25")
        expect(page.locator("#output .badge")).to_have_text("succeeded")


def test_a_chat_streams_its_replies(open_it: OpenPage, server: Server) -> None:
    with open_it() as page:
        go(page, server, "chat")
        page.click("summary:has-text('Settings')")
        page.fill("#chat-max", "40")
        page.fill("#chat-input", "Tell me a story.")
        page.evaluate(
            """() => {
              window.lengths = new Set();
              new MutationObserver(() => window.lengths.add(
                document.querySelector('.turn.model .text')?.textContent.length ?? 0,
              )).observe(document.querySelector('.turns'), {subtree: true, childList: true, characterData: true});
            }"""
        )
        page.press("#chat-input", "Enter")
        expect(page.locator(".turn.user")).to_contain_text("Tell me a story.")
        reply = page.locator(".turn.model")
        expect(reply).to_have_attribute("aria-busy", "false", timeout=SECONDS)
        assert page.evaluate("() => window.lengths.size") > 3, "it came in pieces"
        first = reply.inner_text()
        assert len(first) > 20
        assert "\x1e" not in first
        page.click("#nav >> text=Overview")
        page.click("#nav >> text=Chat")
        expect(page.locator(".turn.model .text")).to_contain_text(first[10:20])
        page.fill("#chat-input", "And then?")
        page.press("#chat-input", "Enter")
        expect(page.locator(".turn.model").nth(1)).to_have_attribute(
            "aria-busy", "false", timeout=SECONDS
        )
        page.click("text=New chat")
        expect(page.locator(".turn")).to_have_count(0)


def test_a_reply_can_be_stopped(open_it: OpenPage, server: Server) -> None:
    with open_it() as page:
        go(page, server, "chat")
        page.click("summary:has-text('Settings')")
        page.fill("#chat-max", "4000")
        page.fill("#chat-input", "Tell me a story that has no end.")
        page.press("#chat-input", "Enter")
        page.click("text=Stop")
        expect(page.locator(".turn.model")).to_contain_text("Stopped")
        expect(page.locator("text=Send")).to_be_visible()


def views(writer: str) -> dict[str, str]:
    return {
        "": "#instances td",
        f"instances/{writer}": "#messages .transcript",
        "programs": "#programs li",
        "programs/writer": "#readme table",
        "chat": ".composer",
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_view_is_accessible_and_fits(
    open_it: OpenPage,
    server: Server,
    writer: str,
    axe: str | None,
    scheme: str,
    width: int,
) -> None:
    with open_it(scheme=scheme, width=width) as page:
        for view, sign in views(writer).items():
            go(page, server, view)
            expect(page.locator(sign).first).to_be_visible(timeout=SECONDS)
            check_accessible(page, axe)
            assert overflow(page) <= 0, f"{view} is wider than {width} px"


def test_colours_follow_the_system_until_one_is_chosen(
    open_it: OpenPage, server: Server
) -> None:
    def brightness(page: Page) -> int:
        colour = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    with open_it(scheme="dark") as page:
        go(page, server)
        assert brightness(page) < 150
        page.emulate_media(color_scheme="light")
        assert brightness(page) > 600
        page.click("#theme")  # light
        page.click("#theme")  # dark
        assert brightness(page) < 150
        page.reload()
        assert brightness(page) < 150, "the choice is kept"


def test_the_keyboard_reaches_everything(open_it: OpenPage, server: Server) -> None:
    with open_it() as page:
        go(page, server)
        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        for _ in range(20):
            page.keyboard.press("Shift+Tab")
            if page.evaluate("() => document.activeElement.dataset.view") == "programs":
                break
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("Programs")
        expect(page.locator("main")).to_be_focused()


def test_a_restarted_server_is_found_again(
    open_it: OpenPage, patient: Callable[[int], Server]
) -> None:
    first = patient(0)
    with open_it(expected="net::ERR") as page:
        go(page, first)
        port = first.port
        first.stop()
        expect(page.locator("#notice")).to_contain_text("again")
        expect(page.locator("#link")).to_have_text(re.compile("stops|No connection"))
        patient(port)
        expect(page.locator("#link")).to_have_text("Live", timeout=SECONDS)
        expect(page.locator("#notice")).to_contain_text("started anew")


@pytest.fixture
def patient(tmp_path: Path) -> Generator[Callable[[int], Server]]:
    """Starts servers on a port; at the end, the last one stops."""
    servers = list[Server]()

    def start(port: int) -> Server:
        servers.append(Server(tmp_path, port))
        return servers[-1]

    yield start
    servers[-1].stop()


def test_a_server_with_keys_asks_for_one(open_it: OpenPage, tmp_path: Path) -> None:
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "pie_trio",
            "keys",
            "add",
            "ann",
            "--data-dir",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (key,) = re.findall(r"pie_\S+", made.stdout)
    with (
        serving(tmp_path, "--keys", "on") as server,
        open_it(expected="401") as page,
    ):
        page.goto(server.url)
        page.fill("#key", "pie_wrong")
        page.press("#key", "Enter")
        expect(page.locator(".problem")).to_contain_text("not known")
        page.fill("#key", key)
        page.click("main >> text=Log in >> nth=-1")
        expect(page.locator("#link")).to_have_text("Live", timeout=SECONDS)
        expect(page.locator("h1")).to_have_text("Overview")
        expect(page.locator(".head p")).to_contain_text("ann")
        page.reload()
        expect(page.locator("#link")).to_have_text("Live", timeout=SECONDS)
        page.click("#logout")
        expect(page.locator("h1")).to_have_text("Log in")
        page.reload()
        expect(page.locator("#key")).to_be_visible()
