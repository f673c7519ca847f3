"""What programs log with the standard library goes to the instance's log."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from inferlet_py import inferlet
from tests.inferlet_py.scripted_host import ScriptedHost, connected

if TYPE_CHECKING:
    import pytest


def run_inferlet(function: Any) -> ScriptedHost:
    host: Any = ScriptedHost()
    host.get_arguments = lambda: "{}"
    with connected(host):
        inferlet(function).run(host)
    return host  # type: ignore[no-any-return]


def test_records_have_their_level_and_the_name_of_their_logger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The handlers of pytest would keep a text that cannot be passed on between processes.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    async def main() -> None:
        logging.getLogger("app").debug("not shown")
        logging.getLogger("app").info("count %d", 3)
        logging.warning("careful\ud800")
        try:
            raise ValueError("bad")
        except ValueError:
            logging.exception("failed")

    first, second, third = run_inferlet(main).logged
    assert first == ("info", "app: count 3")
    assert second == ("warning", "root: careful?")
    assert third[0] == "error"
    assert third[1].startswith("root: failed\nTraceback")
    assert third[1].endswith("ValueError: bad")


def test_a_program_may_ask_for_more() -> None:
    async def main() -> None:
        logging.getLogger().setLevel(logging.DEBUG)
        logging.debug("shown")

    assert run_inferlet(main).logged == [("debug", "root: shown")]


def test_after_the_run_all_is_as_before() -> None:
    root = logging.getLogger()
    before = root.level, list(root.handlers)

    async def main() -> None:
        logging.info("x")

    run_inferlet(main)
    assert (root.level, root.handlers) == before


def test_what_the_server_logs_meanwhile_is_its_own() -> None:
    async def main() -> None:
        server = threading.Thread(target=logging.error, args=("of the server",))
        server.start()
        server.join()

    assert run_inferlet(main).logged == []
