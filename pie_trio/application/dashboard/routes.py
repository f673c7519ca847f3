"""``/`` and ``/dashboard/NAME``: the files of the dashboard, which tell nothing of anybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import abort, request
from quart_trio.wrappers import TrioResponse

from pie_trio.application.dashboard.files import read_static_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from quart.wrappers import Response

    from pie_trio.application.web import WebApp

__all__ = ["HEADERS", "add_dashboard"]

INDEX = "index.html"
HEADERS = {
    # Nothing but the server's own files, and nobody may put the dashboard into a frame.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Asked for each time, answered with 304: an upgraded server is never shown by old files.
    "cache-control": "no-cache",
}


def add_dashboard(
    app: WebApp, *, is_open: Callable[[Callable[..., object]], object]
) -> None:
    """Add the routes.

    Args:
        app: Of the server.
        is_open: Marks handlers that answer without a key.
    """
    files = read_static_files()

    async def get_index() -> Response:
        return answer(INDEX)

    async def get_file(name: str) -> Response:
        return answer(name)

    def answer(name: str) -> Response:
        found = files.get(name)
        if found is None:
            abort(404, f"the dashboard has no file {name[:80]!r}")
        headers = {**HEADERS, "etag": f'"{found.etag}"'}
        if request.if_none_match.contains(found.etag):
            return TrioResponse(b"", 304, headers)
        return TrioResponse(found.data, 200, headers, content_type=found.content_type)

    for path, view in (("/", get_index), ("/dashboard/<name>", get_file)):
        is_open(view)
        app.add_url_rule(path, view_func=view, methods=["GET"])
