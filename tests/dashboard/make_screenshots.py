"""Writes the pictures of the dashboard for the documentation: ``nox -s screenshots``.

Each view, light and dark, on a desktop and on a phone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.application.server.clients import archive_of
from tests.dashboard.browsing import open_browser, open_page
from tests.dashboard.serving import README, ROOT, WRITER, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.dashboard.serving import Server

FOLDER = ROOT / "docs/images/dashboard"
SIZES = {"desktop": (1180, 820), "phone": (360, 740)}
SETTLE_MS = 2500
"""For charts to have something to show; nothing is asserted here."""


def main(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as data,
        serving(Path(data), "--kv-pages", "1200") as server,
        open_browser() as browser,
    ):
        archive = archive_of({"app.py": WRITER, "README.md": README})
        server.ask("PUT", "/v1/programs/writer", archive)
        for scheme in ("light", "dark"):
            for size, (width, height) in SIZES.items():
                for view in VIEWS:
                    with open_page(
                        browser, scheme=scheme, width=width, height=height
                    ) as page:
                        path = folder / f"{view}-{size}-{scheme}.png"
                        VIEWS[view](page, server)
                        page.evaluate("() => scrollTo(0, 0)")
                        page.screenshot(path=path)


def show_overview(page: Page, server: Server) -> None:
    """Show the overview while something runs."""
    page.goto(server.url)
    page.wait_for_selector("dl.tiles")
    names = list[str]()
    for number in range(1, 7):
        prompt = "A tale of a dog. " * (9 * number)
        names.append(
            server.launch("writer", pieces=2 + number, tokens=220, prompt=prompt)
        )
        page.wait_for_timeout(SETTLE_MS // 5)
    page.wait_for_timeout(SETTLE_MS)
    for name in names:
        server.ask("POST", f"/v1/instances/{name}/cancel")


def show_instance(page: Page, server: Server) -> None:
    """Show an instance that waits for a message."""
    name = server.launch("writer", pieces=3, tokens=48)
    page.goto(f"{server.url}/#/instances/{name}")
    page.wait_for_selector("#messages .transcript:not([hidden])")
    page.wait_for_timeout(SETTLE_MS)
    page.fill(f"#message-{name}", "hello")
    page.click("#messages button")
    page.wait_for_timeout(SETTLE_MS // 2)
    server.ask("POST", f"/v1/instances/{name}/cancel")


def show_program(page: Page, server: Server) -> None:
    """Show a program after a launch."""
    page.goto(f"{server.url}/#/programs/writer")
    page.fill("#argument-pieces", "1")
    page.click("#launch button[type=submit]")
    page.wait_for_selector("#output .inline-form")
    page.wait_for_timeout(SETTLE_MS // 2)


def show_chat(page: Page, server: Server) -> None:
    """Show a chat with one reply."""
    page.goto(f"{server.url}/#/chat")
    page.fill("#chat-input", "Tell me a story about a dog.")
    page.press("#chat-input", "Enter")
    page.wait_for_selector(".turn.model:not(.streaming)", timeout=60_000)


VIEWS = {
    "overview": show_overview,
    "instance": show_instance,
    "program": show_program,
    "chat": show_chat,
}

if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
