"""The fixtures of servers over a fake engine."""

from __future__ import annotations

from tests.application.conftest import language, open_fake
from tests.application.server.conftest import open_server

__all__ = ["language", "open_fake", "open_server"]
