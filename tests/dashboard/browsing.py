"""Chromium without a screen, and what every page is checked for."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Return the browser: ``$PIE_BROWSER``, else the system's Chromium."""
    return os.environ.get("PIE_BROWSER") or next(
        filter(None, map(shutil.which, NAMES)), None
    )


def find_axe() -> str | None:
    """Return the text of axe-core, if ``$PIE_AXE`` says where its file is."""
    path = os.environ.get("PIE_AXE")
    return Path(path).read_text() if path else None


@contextmanager
def open_browser() -> Generator[Browser]:
    """Run a browser for as long as the block is open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Nothing but pages of the test is shown, and containers have no user namespaces.
        browser = playwright.chromium.launch(
            executable_path=find_browser(), args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@contextmanager
def open_page(
    browser: Browser,
    *,
    scheme: Any = "light",
    width: int = 1280,
    height: int = 900,
    expected: str = r"(?!)",
) -> Generator[Page]:
    """Open a page of its own context; at the end, nothing may have gone wrong in it.

    Args:
        browser: Of which.
        scheme: What the system is said to prefer, ``light`` or ``dark``.
        width: Of the window, in pixels.
        height: Of the window.
        expected: A pattern; what it finds in the console is no problem.
    """
    problems = list[str]()
    context = browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": height},
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "console",
        lambda line: (
            problems.append(line.text) if line.type in ("error", "warning") else None
        ),
    )
    try:
        yield page
    finally:
        context.close()
    unexpected = [text for text in problems if not re.search(expected, text)]
    assert not unexpected, unexpected


def check_accessible(page: Page, axe: str | None) -> None:
    """Assert what axe-core finds, or without it, the part that is checked here."""
    if axe is None:
        found = page.evaluate(OWN_CHECKS)
    else:
        page.evaluate(axe)
        result = page.evaluate(
            "() => axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})"
        )
        assert len(result["passes"]) > 10, "it looked at the page"
        found = [
            f"{v['id']}: {v['help']}: {json.dumps([n['html'][:160] + ' ' + n['failureSummary'][:300] for n in v['nodes'][:3]])}"
            for v in result["violations"]
        ]
    assert not found, "\n".join(found)


def overflow(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.evaluate("() => document.documentElement.scrollWidth - innerWidth"))


OWN_CHECKS = """() => {
  const found = [];
  const named = (e) => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || e.textContent.trim() || e.title;
  const shown = (e) => e.offsetParent !== null || getComputedStyle(e).position === 'fixed';
  for (const one of document.querySelectorAll('input, select, textarea'))
    if (shown(one) && !one.labels?.length && !named(one)) found.push(`no label: ${one.outerHTML}`);
  for (const one of document.querySelectorAll('button, a[href], [role=img]'))
    if (shown(one) && !named(one)) found.push(`no name: ${one.outerHTML}`);
  for (const tag of ['main', 'header', 'nav', 'h1'])
    if (document.querySelectorAll(tag).length !== 1) found.push(`not one ${tag}`);
  const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`twice: ${id}`);
  let last = 0;
  for (const one of document.querySelectorAll('h1, h2, h3, h4')) {
    const level = Number(one.tagName[1]);
    if (shown(one) && level > last + 1) found.push(`skips a level: ${one.outerHTML}`);
    last = level;
  }
  return found;
}"""
