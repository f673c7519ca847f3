"""``pie serve`` over an engine that costs nothing: a whole server in a process that tests may kill."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pie_trio.application.server import command
from pie_trio.application.serving import LoadedEngine
from pie_trio.cli import main
from pie_trio.inference.fake import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def load_fake(*_: object, **__: object) -> Generator[list[LoadedEngine]]:
    """Return one engine in the place of those that were asked for."""
    yield [LoadedEngine(FakeEngine(), FakeTokenizer())]


if __name__ == "__main__":
    vars(command)["load_engines"] = load_fake
    sys.exit(main(["serve", *sys.argv[1:]]))
