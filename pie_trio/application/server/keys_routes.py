"""``/v1/login``: a browser trades a key for a cookie, and asks who it is.

Pages cannot set headers of ``EventSource`` and ``WebSocket``; cookies go along by themselves.
The cookie is out of reach for scripts, and no other site's page can make the browser send it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quart import request

from pie_trio.application.server.answers import answer_json
from pie_trio.application.server.keys_sessions import COOKIE, LOGIN_SECONDS
from pie_trio.application.server.owners import authenticate, open_to_all
from pie_trio.errors import BadArgumentError

if TYPE_CHECKING:
    from collections.abc import Collection

    from quart.wrappers import Response

    from pie_trio.application.server.owners import Gate
    from pie_trio.application.web import WebApp

__all__ = ["add_login_routes"]


def add_login_routes(app: WebApp, gate: Gate) -> None:
    """Add the routes."""

    def about(user: str, scopes: Collection[str]) -> dict[str, Any]:
        has_keys = gate.keys is not None
        return {"user": user, "scopes": sorted(scopes), "keys": has_keys}

    async def get_login() -> Response:
        owner = authenticate(request)
        return answer_json(about(owner.name, owner.scopes))

    @open_to_all
    async def post_login() -> Response:
        gate.check_site(request)
        fields: object = await request.get_json(force=True)
        match fields:
            case {"key": str(text)}:
                pass
            case _:
                raise BadArgumentError('the body must be {"key": "pie_…"}')
        if gate.keys is None:
            owner = gate.identify(request)
            return answer_json(about(owner.name, owner.scopes))
        key = gate.check_key(text.strip())
        answer = answer_json(about(key.user, key.scopes))
        origin = request.headers.get("origin", "")
        answer.set_cookie(
            COOKIE,
            gate.sessions.open(key.key_id),
            max_age=LOGIN_SECONDS,
            path="/",
            httponly=True,
            samesite="Strict",
            # A proxy may speak TLS for this server: then the browser says so.
            secure=request.scheme == "https" or origin.startswith("https://"),
        )
        return answer

    @open_to_all
    async def post_logout() -> Response:
        gate.check_site(request)
        gate.sessions.close(request.cookies.get(COOKIE, ""))
        answer = answer_json({"user": None})
        answer.delete_cookie(COOKIE, path="/", httponly=True, samesite="Strict")
        return answer

    app.add_url_rule("/v1/login", view_func=get_login, methods=["GET"])
    app.add_url_rule("/v1/login", view_func=post_login, methods=["POST"])
    app.add_url_rule("/v1/logout", view_func=post_logout, methods=["POST"])
