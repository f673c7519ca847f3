"""One server and one browser for all tests; without a browser they say so and are skipped."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from tests.application.server.clients import archive_of
from tests.dashboard.browsing import find_axe, find_browser, open_browser, open_page
from tests.dashboard.serving import README, WRITER, Server, serving

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from playwright.sync_api import Browser, Page

OpenPage = Callable[..., "AbstractContextManager[Page]"]


@pytest.fixture(scope="session")
def browser() -> Generator[Browser]:
    """Chromium, without a screen."""
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed: nox -s dashboard installs it")
    if find_browser() is None:
        pytest.skip("there is no browser: install chromium, or name one in PIE_BROWSER")
    with open_browser() as browser:
        yield browser


@pytest.fixture
def open_it(browser: Browser) -> OpenPage:
    """Opens pages in which nothing may go wrong."""
    return partial(open_page, browser)


@pytest.fixture(scope="session")
def axe() -> str | None:
    """The text of axe-core, if there is one."""
    return find_axe()


@pytest.fixture(scope="module")
def server(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Server]:
    """A server with pie-tiny and the program ``writer``."""
    del browser  # without one, there is no need for a server
    with serving(tmp_path_factory.mktemp("dashboard"), "--kv-pages", "600") as server:
        archive = archive_of({"app.py": WRITER, "README.md": README})
        server.ask("PUT", "/v1/programs/writer", archive)
        yield server
