"""The web application of a server: all routes over its programs, instances and models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pie_trio.application.dashboard.routes import add_dashboard
from pie_trio.application.mcp.routes import add_mcp_routes
from pie_trio.application.openai.routes import add_openai_routes
from pie_trio.application.server.adapter_routes import add_adapter_routes
from pie_trio.application.server.answers import answer_error
from pie_trio.application.server.instance_routes import add_instance_routes
from pie_trio.application.server.keys_routes import add_login_routes
from pie_trio.application.server.owners import LOCAL, add_gate, open_to_all
from pie_trio.application.server.program_routes import add_program_routes
from pie_trio.application.server.stats_routes import add_stats_routes
from pie_trio.application.server.status_routes import add_status_routes
from pie_trio.application.server.websocket import add_websocket
from pie_trio.application.web import make_app
from pie_trio.errors import PieError

if TYPE_CHECKING:
    from pie_trio.application.server.state import ServerState
    from pie_trio.application.web import WebApp

__all__ = ["make_server_app"]


def make_server_app(state: ServerState) -> WebApp:
    """Return the application. What it serves stays open longer than any request."""
    # A body over the limit gets its answer from the program's own check, which is exact.
    limits = state.programs.limits
    most = max(limits.max_upload_bytes, limits.max_component_bytes) + 1
    app = make_app(
        "pie_trio.server",
        body_limits={
            "/v1/programs/": most,
            "/v1/adapters/": limits.max_adapter_bytes + 1,
        },
    )
    state.programs.open_components(
        state.registry.launcher.runtime,
        lambda program: state.inspector.inspect(program, owner=LOCAL.name),
    )
    app.register_error_handler(PieError, answer_error)
    app.before_request(state.metrics.count_request)
    app.after_request(state.metrics.count_response)
    add_gate(app, state.gate)
    add_program_routes(app, state)
    add_adapter_routes(app, state)
    add_instance_routes(app, state)
    add_websocket(app, state)
    add_status_routes(app, state)
    add_openai_routes(app, state)
    add_mcp_routes(app, state)
    add_login_routes(app, state.gate)
    add_stats_routes(app, state)
    add_dashboard(app, is_open=open_to_all)
    return app
