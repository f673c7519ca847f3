"""The application that handlers are registered with: Quart on trio, bounded, errors as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, cast

import trio
from quart import has_request_context, request, websocket
from quart_trio import QuartTrio
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import WebsocketMismatch

from pie_trio.application.web.asgi import (
    EndedWebSocket,
    HttpExchange,
    WebSocketExchange,
)
from pie_trio.application.web.bodies import BoundedRequest
from pie_trio.application.web.problems import problem_body

if TYPE_CHECKING:
    from collections.abc import Mapping

    from quart.typing import ResponseReturnValue, ResponseTypes
    from quart.wrappers import Request, Response, Websocket

__all__ = ["WebApp", "make_app"]

MAX_BODY_BYTES = 1 << 20
MAX_PATH_CHARACTERS = 200
UPGRADE_REQUIRED = 426
IMPLIED = {"HEAD", "OPTIONS"}
"""Methods that need no handler."""

INTERNAL_MESSAGE = "the server failed at this request; its log says why"


class WebApp(QuartTrio):
    """Quart on trio with our bounds. Made by :func:`make_app`.

    It owns no tasks and no services: these are opened around
    :func:`~pie_trio.application.web.shell.serve`, and stay open longer than any handler.
    """

    asgi_http_class = HttpExchange
    asgi_websocket_class = WebSocketExchange
    request_class = BoundedRequest
    websocket_class = EndedWebSocket
    body_limits: Mapping[str, int]

    def find_body_limit(self, path: str) -> int | None:
        """Return the limit of the longest prefix of a path; None for the default."""
        fitting = [p for p in self.body_limits if path.startswith(p)]
        return self.body_limits[max(fitting, key=len)] if fitting else None

    async def handle_user_exception(
        self, error: Exception | BaseExceptionGroup[BaseException]
    ) -> HTTPException | ResponseReturnValue:
        """Answer an error that a handler has raised.

        A nursery wraps errors in groups: a group of one is what is in it. Several are one
        failure, since an answer to one of them would hide the others.

        Raises:
            Exception: No handler of errors is registered for it.
        """
        if isinstance(error, BaseExceptionGroup):
            group: BaseExceptionGroup[BaseException] = error
            cancelled, others = group.split(trio.Cancelled)
            if cancelled is not None:
                if others is not None:
                    self.logger.error("a cancelled handler failed", exc_info=others)
                raise cancelled
            if len(group.exceptions) != 1:
                raise group
            inner = cast("Exception", group.exceptions[0])
            return await self.handle_user_exception(inner)
        return await super().handle_user_exception(error)

    async def handle_websocket(self, websocket: Websocket) -> ResponseTypes | None:
        """Run the handler of a WebSocket."""
        response = await super().handle_websocket(websocket)
        if response is not None and isinstance(websocket, EndedWebSocket):
            websocket.end_status = response.status_code
        return response

    def before_serving(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: nothing is run before serving."""
        raise _no_lifespan("before_serving")

    def after_serving(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: nothing is run after serving."""
        raise _no_lifespan("after_serving")

    def while_serving(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: nothing is run beside serving."""
        raise _no_lifespan("while_serving")

    def add_background_task(self, *_: Any, **__: Any) -> NoReturn:
        """Refuse: every task has an owner, and this is none."""
        raise _no_lifespan("add_background_task")


def make_app(
    name: str,
    *,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_limits: Mapping[str, int] | None = None,
) -> WebApp:
    """Return an application without routes.

    Every error is JSON: ``{"error": {"status", "code", "message"}}``. There are no files, no
    templates and no redirects; a path with a slash at its end is the same path.

    Args:
        name: Of its logger.
        max_body_bytes: Of a request. The server's own limit may be lower.
        body_limits: Other limits for paths that begin so; the longest prefix counts.
    """
    app = WebApp(name, static_folder=None, template_folder=None)
    app.body_limits = dict(body_limits or {})
    app.config["MAX_CONTENT_LENGTH"] = max_body_bytes
    # Deadlines are the server's: these would cut streams off without a word.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["BODY_TIMEOUT"] = None
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    app.register_error_handler(HTTPException, _answer_error)
    return app


async def _answer_error(error: HTTPException) -> Response:
    status, message = _explained(error)
    if status >= 500:
        was_raised = getattr(error, "original_exception", None) is None
        message = (was_raised and error.description) or INTERNAL_MESSAGE
    headers = [
        (key, value)
        for key, value in error.get_headers()
        if key.lower() not in ("content-type", "content-length")
    ]
    if status == UPGRADE_REQUIRED:
        headers += [("upgrade", "websocket"), ("connection", "upgrade")]
    return TrioResponse(
        problem_body(status, message),
        status,
        headers,  # type: ignore[arg-type]  # pairs are as good as a mapping
        content_type="application/json",
    )


def _explained(error: HTTPException) -> tuple[int, str]:
    """Return the status of an error, and what was wrong; in our words where no route was found."""
    status = error.code or 500
    if status >= 500:
        return status, ""
    asked: Request | Websocket = request if has_request_context() else websocket
    path = asked.path[:MAX_PATH_CHARACTERS]
    match error:
        case WebsocketMismatch() if has_request_context():
            return UPGRADE_REQUIRED, f"{path} is a WebSocket: ask for an upgrade to one"
        case WebsocketMismatch():
            return status, f"{path} is no WebSocket: send a request"
        case NotFound() if error.description == NotFound.description:
            return status, f"there is nothing at {path}"
        case MethodNotAllowed() if error.valid_methods:
            known = ", ".join(sorted({*error.valid_methods} - IMPLIED))
            return status, f"{path} takes {known}, and not {asked.method}"
        case _:
            return status, error.description or ""


def _no_lifespan(name: str) -> RuntimeError:
    return RuntimeError(
        f"{name} is not there: open what handlers need around serve(), in a nursery of yours"
    )
