"""``/v1/models``, ``/v1/completions``, ``/v1/chat/completions``, ``/v1/responses``, ``/v1/embeddings``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from quart import Blueprint, request
from werkzeug.exceptions import HTTPException

from pie_trio.application.openai.answering import answer_with, refuse
from pie_trio.application.openai.chat_answer import ChatAnswer
from pie_trio.application.openai.completion_answer import (
    CompletionAnswer,
    EmbeddingsAnswer,
)
from pie_trio.application.openai.failures import OpenAIError
from pie_trio.application.openai.programs import list_published
from pie_trio.application.openai.requests import (
    read_chat,
    read_completion,
    read_embeddings,
)
from pie_trio.application.openai.response_answer import ResponseAnswer
from pie_trio.application.openai.responses_request import read_response
from pie_trio.application.server.answers import RETRY_SECONDS, answer_json
from pie_trio.application.server.owners import authenticate, authorize
from pie_trio.application.web.problems import problem_code
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from quart.wrappers import Response

    from pie_trio.application.openai.answer import Answer
    from pie_trio.application.openai.asked import Asked, Kind
    from pie_trio.application.server.owners import Owner
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp
    from pie_trio.control.detokenize import TokenTexts

    Read = Callable[[object], Asked]
    Make = Callable[[Any, Any, TokenTexts], Answer]

__all__ = ["add_openai_routes"]

OTHER_METHODS = ["GET", "PUT", "PATCH", "DELETE"]


def add_openai_routes(app: WebApp, state: ServerState) -> None:
    """Add the routes; errors in them have OpenAI's shape."""
    routes = Blueprint("openai", __name__)
    routes.register_error_handler(PieError, _answer_error)
    routes.register_error_handler(HTTPException, _answer_http_error)
    created = int(time.time())

    async def models() -> Response:
        found = await _list_models(state, authenticate(request), created)
        return answer_json({"object": "list", "data": found})

    async def model(name: str) -> Response:
        found = await _list_models(state, authenticate(request), created)
        for fields in found:
            if fields["id"] == name:
                return answer_json(fields)
        there = ", ".join(fields["id"] for fields in found)
        raise OpenAIError(
            f"there is no model {name!r}: the server has {there}",
            param="model",
            code="model_not_found",
            status=404,
        )

    routes.add_url_rule("/v1/models", view_func=models, methods=["GET"])
    routes.add_url_rule("/v1/models/<path:name>", view_func=model, methods=["GET"])

    def add(path: str, kind: Kind, read: Read, make: Make) -> None:
        name = path.removeprefix("/v1/").replace("/", "_")
        view = _make_view(state, kind, read, make)
        routes.add_url_rule(path, endpoint=name, view_func=view, methods=["POST"])
        # Without these rules, whoever takes another method gets an error of another shape.
        routes.add_url_rule(
            path, f"{name}_others", _refuse_method, methods=OTHER_METHODS
        )

    add("/v1/chat/completions", "chat", read_chat, ChatAnswer)
    add("/v1/completions", "completions", read_completion, CompletionAnswer)
    add("/v1/responses", "chat", read_response, ResponseAnswer)
    add("/v1/embeddings", "embeddings", read_embeddings, EmbeddingsAnswer)
    routes.add_url_rule(
        "/v1/responses/<path:name>",
        view_func=_miss_response,
        methods=["GET", "POST", "DELETE"],
    )
    app.register_blueprint(routes)


def _make_view(
    state: ServerState, kind: Kind, read: Read, make: Make
) -> Callable[[], Awaitable[Response]]:
    async def view() -> Response:
        owner = authorize(request, "launch")
        body = await request.get_json(force=True)
        asked = read(body)
        # A program may use any model; what it tells of tokens is told of the first one.
        model = state.models.get(asked.model) or next(iter(state.models.values()))
        answer = make(asked, body, model.texts)
        return await answer_with(state, answer, kind, owner=owner)

    return view


async def _list_models(
    state: ServerState, owner: Owner, created: int
) -> list[dict[str, Any]]:
    found = [
        {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "pie",
            "max_positions": model.info.max_positions,
        }
        for name, model in state.models.items()
    ]
    for program in await list_published(state, owner):
        at = created if program.created_at is None else int(program.created_at)
        fields = {"id": program.name, "object": "model", "created": at}
        found.append({**fields, "owned_by": program.owner})
    return found


async def _refuse_method() -> Response:
    error = OpenAIError(
        f"{request.path} takes POST, and not {request.method}",
        code="method_not_allowed",
        status=405,
    )
    return refuse(error, {"allow": "POST"})


async def _miss_response(name: str) -> Response:
    raise OpenAIError(
        f"there is no response {name!r}: nothing is kept after the answer",
        param="response_id",
        code="not_found",
        status=404,
    )


async def _answer_error(error: PieError) -> Response:
    response = refuse(error)
    if response.status_code in RETRY_SECONDS:
        response.headers["retry-after"] = RETRY_SECONDS[response.status_code]
    if response.status_code == 401:
        response.headers["www-authenticate"] = 'Bearer realm="pie"'
    return response


async def _answer_http_error(error: HTTPException) -> Response:
    status = error.code or 500
    message = (error.description or "") if status < 500 else "the server failed"
    code = problem_code(status).replace("-", "_")
    return refuse(OpenAIError(message, code=code, status=status))
