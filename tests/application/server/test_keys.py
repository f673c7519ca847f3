"""Requests with keys, without, and with those of others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from wsproto.events import CloseConnection

from pie_trio.application.server.keys import SCOPES, KeyRing, make_key
from pie_trio.application.server.keys_sessions import LOGIN_SECONDS, Sessions
from pie_trio.application.server.keys_tables import open_key_tables
from pie_trio.application.server.limits import ServerLimits
from pie_trio.application.server.owners import is_loopback
from pie_trio.config import SharedLimits
from pie_trio.control.quotas import Quotas
from pie_trio.errors import ConfigError
from tests.application.server.test_websocket import Socket
from tests.application.web.clients import HANDSHAKE, Response, WebSocketClient

if TYPE_CHECKING:
    from pathlib import Path

    from tests.application.server.clients import Api
    from tests.application.server.conftest import OpenServer, Served

OPEN = {"/healthz", "/readyz", "/v1/login", "/v1/logout"}
"""What may answer without a key; of /v1/login not GET."""
STATIC = {"/", "/dashboard/<name>"}
WAITS = "await send('ready')\nawait receive()"


def routes_of(served: Served) -> list[tuple[str, str]]:
    """Return the method and the path of each route; WS for WebSockets."""
    return [
        ("WS" if rule.websocket else method, rule.rule)
        for rule in served.app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"OPTIONS", "HEAD"}
    ]


async def shake_hands(served: Served, path: str, *headers: str) -> Response:
    """Ask for a WebSocket, and return what refuses it."""
    async with await served.web.connect() as client:
        lines = "".join(f"{line}\r\n" for line in headers)
        head = HANDSHAKE.replace(b"/ws", path.encode())
        await client.send(head + lines.encode() + b"\r\n")
        return await client.read_response()


async def test_every_route_asks_for_a_key(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        routes = routes_of(served)
        assert len(routes) > 20
        for method, rule in [*routes, ("GET", "/none"), ("OPTIONS", "/v1/programs")]:
            path = rule.replace("<path:", "").replace("<", "").replace(">", "")
            if method == "WS":
                answer = await shake_hands(served, path)
            else:
                answer = await served.api.ask(method, path)
            is_open = rule in OPEN and (method, rule) != ("GET", "/v1/login")
            is_open = is_open or (method == "GET" and rule in STATIC)
            assert (answer.status != 401) == is_open, (method, rule, answer.body)


async def test_a_request_without_a_key_is_told_how_to_send_one(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        answer = await served.api.get("/v1/programs")
    assert answer.headers["www-authenticate"] == 'Bearer realm="pie"'
    assert answer.error["code"] == "unauthorized"
    assert "Authorization: Bearer KEY" in answer.error["message"]
    assert "pie keys add" in answer.error["message"]


async def test_a_key_that_is_a_little_different_is_none(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        key = served.make_key("ann")
        other_end = key[:-1] + ("0" if key[-1] != "0" else "1")
        other_id = "pie_00000000_" + key.split("_")[2]
        short = key[:12]
        assert (await served.api.with_key(key).get("/v1/programs")).status == 200
        for wrong in (
            *(other_end, other_id, key + "0", key.upper(), short, "", "pie_\u00e9"),
        ):
            answer = await served.api.with_key(wrong).get("/v1/programs")
            assert answer.status == 401, wrong
        basic = await served.api.get("/v1/programs", authorization=f"Basic {key}")
        assert "does not know 'Basic'" in basic.error["message"]
        lower = await served.api.get("/v1/programs", authorization=f"bearer  {key} ")
        assert lower.status == 200


async def ask_for(scope: str, api: Api) -> int:
    """Do something that needs a scope, and return the status."""
    match scope:
        case "launch":
            answer = await api.ask("POST", "/v1/programs/built/run", {})
        case "upload":
            answer = await api.ask("PUT", "/v1/programs/own", b"x = 1")
        case "metrics":
            answer = await api.get("/metrics")
        case _:
            answer = await api.get("/v1/programs", pie_user="bob")
    return answer.status


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_key_is_for_its_scopes_alone(
    open_server: OpenServer, scope: str
) -> None:
    async with open_server(has_keys=True) as served:
        for other in SCOPES:
            api = served.user("ann", other)
            assert (await api.get("/v1/programs")).status == 200, "that needs any key"
            status = await ask_for(scope, api)
            may = other in (scope, "admin")
            assert (status != 403) == may, (scope, other, status)


async def test_a_scope_that_is_missing_is_named(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        answer = await served.user("ann", "upload").get("/v1/instances")
    assert answer.error["code"] == "forbidden"
    assert (
        "the scope launch, and the one of ann is for upload" in answer.error["message"]
    )


async def test_keys_are_made_and_revoked_while_the_server_runs(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        key = served.make_key("ann")
        ann, other = served.api.with_key(key), served.user("ann")
        assert (await ann.get("/v1/programs")).status == 200
        served.revoke(key)
        assert (await ann.get("/v1/programs")).status == 401
        assert (await other.get("/v1/programs")).status == 200


async def test_a_websocket_ends_when_its_key_is_revoked(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        key = served.make_key("ann")
        async with await served.web.connect() as client:
            websocket = await open_with(client, f"Authorization: Bearer {key}")
            socket = Socket(websocket)
            await socket.send(type="attach", instance="none", request=1)
            await socket.until("refused")
            served.revoke(key)
            await socket.send(type="launch", program="any", request=2)
            with trio.fail_after(30):
                event = await websocket.next_event()
            assert isinstance(event, CloseConnection)
            assert (event.code, event.reason) == (1008, "the key was revoked")
        assert not served.registry.num_running


async def test_a_stream_ends_when_its_key_is_revoked_and_so_does_what_it_holds(
    open_server: OpenServer,
) -> None:
    limits = ServerLimits(heartbeat_seconds=0.05)
    async with open_server(has_keys=True, limits=limits) as served:
        ann, other = served.user("ann"), served.user("ann")
        key = served.make_key("ann")
        await ann.deploy("echo", "async for text in messages(): await send(text)")
        async with served.api.with_key(key).launch("echo") as events:
            name = (await events.until("started"))["id"]
            async with other.stream("GET", f"/v1/instances/{name}/events") as listener:
                await other.ask("POST", f"/v1/instances/{name}/messages", {"text": "a"})
                assert await events.texts(1) == ["a"]
                served.revoke(key)
                with trio.fail_after(30):
                    await events.client.read_until(b"\r\n0\r\n\r\n")
                    error = await listener.until("error")
        assert error["message"] == "the client that launched it has left"


async def open_with(client: object, *headers: str) -> WebSocketClient:
    """Open a WebSocket with more headers."""
    from wsproto import ConnectionType, WSConnection
    from wsproto.events import AcceptConnection, Request

    ws = WSConnection(ConnectionType.CLIENT)
    pairs = [
        (name.encode(), value.strip().encode())
        for name, _, value in (line.partition(":") for line in headers)
    ]
    request = Request(host="x", target="/v1/ws", extra_headers=pairs)
    websocket = WebSocketClient(client, ws)  # type: ignore[arg-type]
    await websocket.send(request)
    assert isinstance(await websocket.next_event(), AcceptConnection)
    return websocket


# ---- browsers ------------------------------------------------------------------------


async def log_in(api: Api, key: str, **headers: str) -> tuple[Response, str]:
    """Trade a key for a cookie."""
    answer = await api.ask("POST", "/v1/login", {"key": key}, **headers)
    return answer, answer.headers.get("set-cookie", "")


async def test_a_browser_trades_a_key_for_a_cookie(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        key = served.make_key("ann", "launch")
        answer, cookie = await log_in(served.api, key)
        assert answer.json == {"user": "ann", "scopes": ["launch"], "keys": True}
        parts = {part.strip() for part in cookie.split(";")}
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= parts
        assert "Secure" not in parts
        assert key not in cookie
        assert key.split("_")[2] not in cookie
        pair = cookie.split(";")[0]
        who = await served.api.get("/v1/login", cookie=pair)
        assert who.json == {"user": "ann", "scopes": ["launch"], "keys": True}
        async with await served.web.connect() as client:
            await open_with(client, f"Cookie: {pair}")
        assert (await served.api.get("/v1/programs", cookie=pair + "x")).status == 401
        await served.api.ask("POST", "/v1/logout", cookie=pair)
        assert (await served.api.get("/v1/login", cookie=pair)).status == 401


async def test_a_cookie_behind_tls_stays_behind_it(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        _, cookie = await log_in(served.api, served.make_key("ann"), origin="https://x")
    assert "; Secure" in cookie


async def test_a_login_ends_with_its_key(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        key = served.make_key("ann")
        _, cookie = await log_in(served.api, key)
        served.revoke(key)
        answer = await served.api.get("/v1/login", cookie=cookie.split(";")[0])
        assert (answer.status, "log in again" in answer.error["message"]) == (401, True)
        assert (await log_in(served.api, key))[0].status == 401


async def test_a_login_ends_after_some_hours_and_there_are_not_too_many() -> None:
    now = 0.0
    sessions = Sessions(lambda: now)
    token = sessions.open("1a2b3c4d")
    now = LOGIN_SECONDS - 1.0
    assert sessions.find(token) == "1a2b3c4d"
    now = LOGIN_SECONDS + 1.0
    assert sessions.find(token) is None
    tokens = [sessions.open("1a2b3c4d") for _ in range(1100)]
    assert sessions.find(tokens[0]) is None
    assert sessions.find(tokens[-1]) == "1a2b3c4d"


@pytest.mark.parametrize("has_keys", [True, False])
async def test_a_page_of_another_site_may_not_use_the_rights_of_who_looks_at_it(
    open_server: OpenServer, has_keys: bool
) -> None:
    async with open_server(has_keys=has_keys) as served:
        _, cookie = await log_in(served.api, served.make_key("ann"))
        pair = cookie.split(";")[0]
        for method, path in (("GET", "/v1/programs"), ("POST", "/v1/login")):
            answer = await served.api.ask(
                method, path, {}, cookie=pair, origin="http://evil.example"
            )
            assert answer.status == 403, (method, path)
        answer = await shake_hands(
            served, "/v1/ws", f"Cookie: {pair}", "Origin: http://evil.example"
        )
        assert answer.status == 403
        ours = await served.api.get("/v1/programs", cookie=pair, origin="http://x")
        assert ours.status == 200


async def test_a_name_that_strangers_can_give_us_is_no_name_of_a_server_without_keys(
    open_server: OpenServer,
) -> None:
    async def status(served: Served, host: str) -> int:
        async with await served.web.connect() as client:
            lines = (
                f"GET /v1/programs HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}"
            )
            await client.send(f"{lines}\r\n\r\n".encode())
            return (await client.read_response()).status

    async with open_server(names={"pie.example.com"}) as served:
        for host in (
            *("localhost:8000", "127.0.0.1:8000", "[::1]:80", "box", "a.localhost"),
            "pie.example.com",
        ):
            assert await status(served, host) == 200, host
        for host in ("evil.example:8000", "127.0.0.1.evil.example", "evil.example."):
            assert await status(served, host) == 403, host
    async with open_server(has_keys=True) as served:
        assert await status(served, "any.example") == 401, "it has no cookie of ours"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("box", False)),
        ("localhost.evil.example", False),
    ],
)
def test_only_loopback_is_for_this_machine_alone(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


# ---- admins --------------------------------------------------------------------------


async def test_an_admin_sees_and_ends_what_others_run(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        ann, root = served.user("ann"), served.user("root", "admin")
        await ann.deploy("waits", WAITS)
        async with ann.launch("waits") as events:
            name = (await events.until("started"))["id"]
            (found,) = (await root.get("/v1/instances")).json["instances"]
            assert (found["id"], found["owner"]) == (name, "ann")
            ended = await root.ask("POST", f"/v1/instances/{name}/cancel")
            assert ended.json["state"] == "cancelled"


async def test_an_admin_acts_for_a_user_and_then_with_the_users_rights(
    open_server: OpenServer,
) -> None:
    async with open_server(has_keys=True) as served:
        ann, root = served.user("ann"), served.user("root", "admin")
        await ann.deploy("hers", "return 'ann'")
        assert (await root.get("/v1/programs/hers")).status == 404
        as_ann = {"pie_user": "ann"}
        assert (await root.get("/v1/programs/hers", **as_ann)).status == 200
        asked = {"program": "hers", "detach": True}
        await root.ask("POST", "/v1/instances", asked, **as_ann)
        (found,) = (await ann.get("/v1/instances")).json["instances"]
        assert found["owner"] == "ann"
        as_bob = await root.get("/v1/instances", pie_user="bob")
        assert as_bob.json == {"instances": []}
        assert (await root.get("/v1/programs", pie_user="a/b")).status == 422
        assert (await ann.get("/v1/programs", pie_user="ann")).status == 403


# ---- limits --------------------------------------------------------------------------


async def test_a_key_has_limits_of_its_own(open_server: OpenServer) -> None:
    async with open_server(has_keys=True) as served:
        small, large = served.user("ann", instances=1), served.user("ann")
        await large.deploy("waits", WAITS)
        async with small.launch("waits") as events:
            await events.until("message")
            refused = await small.ask("POST", "/v1/programs/waits/run")
            assert refused.status == 429
            assert "2 instances would be in use" in refused.error["message"]
            assert "the key " in refused.error["message"]
            async with large.launch("waits") as more:
                await more.until("message")
            name = (await large.get("/v1/instances")).json["instances"][0]["id"]
            await large.ask("POST", f"/v1/instances/{name}/cancel")
        async with small.launch("waits") as events:
            await events.until("message")


async def test_children_count_for_the_key_of_their_parent(
    open_server: OpenServer,
) -> None:
    parent = (
        "async with spawn('waits') as first:\n"
        "    await first.receive()\n"
        "    try:\n"
        "        async with spawn('waits') as second:\n"
        "            await second.receive()\n"
        "            second.cancel()\n"
        "            return 'three'\n"
        "    except LimitError as error: return str(error)\n"
        "    finally: first.cancel()\n"
    )
    async with open_server(has_keys=True) as served:
        two, three = served.user("ann", instances=2), served.user("ann", instances=3)
        await two.deploy("waits", WAITS)
        await two.deploy("parent", parent)
        assert (await three.run("parent"))["result"] == "three"
        refused = (await two.run("parent"))["result"]
        assert "3 instances would be in use by the inferlets of the key" in refused


async def test_users_have_limits_in_all(open_server: OpenServer) -> None:
    quotas = Quotas(SharedLimits(instances=8), SharedLimits(instances=1))
    async with open_server(has_keys=True, quotas=quotas) as served:
        ann, bob = served.user("ann"), served.user("bob")
        again = served.user("ann", instances=5)  # a key lifts no limit of its user
        for api in (ann, bob):
            await api.deploy("waits", WAITS)
        async with ann.launch("waits") as events:
            await events.until("message")
            refused = await again.ask("POST", "/v1/programs/waits/run")
            assert (refused.status, "the user ann" in refused.error["message"]) == (
                *(429, True),
            )
            async with bob.launch("waits") as others:
                await others.until("message")


# ---- the file ------------------------------------------------------------------------


def test_what_is_kept_of_a_key_cannot_be_made_into_it(tmp_path: Path) -> None:
    key, text = make_key("ann", ["launch"], created_at=1.0)
    with open_key_tables(tmp_path) as tables:
        tables.add(key)
        assert tables.all() == [key]
        ring = KeyRing(tables)
        assert ring.find(text) == key
    secret = text.split("_")[2]
    assert len(secret) == 64
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert secret.encode() not in data
        assert bytes.fromhex(secret) not in data
        assert path.stat().st_mode & 0o077 == 0
    assert secret not in repr(key)
    assert make_key("ann", ["launch"], created_at=1.0)[1] != text


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys.db").write_bytes(b"no database, but long enough to be one" * 9)
    with pytest.raises(ConfigError, match="list of keys"), open_key_tables(tmp_path):
        pass
